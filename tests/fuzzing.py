"""Mutated recipes, command lines and data rows; a case is a function of its seed. fuzz_runs.py runs and judges it."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import yaml

from alignment.config import _fits
from tests.tiny_recipes import (
    RECIPES,
    TRAINERS,
    arguments,
    chat,
    rows_of,
    settings,
    write_rows,
)

VALUES: tuple[Any, ...] = (
    None, "", " ", "x", "0", "-1", "1e3", "nan", "none", "true", "日本語 🙂", "a\x00b", "x" * 3000, "x/../y",
    "/proc/none/x",
    0, 1, 2, -1, 3, 10**30, -(10**30), 0.0, 0.5, -0.5, 1.5, 1e308, float("nan"), float("inf"), True, False,
    [], [None], [[]], [1, "a"], [0.5, 0.1], {}, {"a": {"b": [1, {"c": None}]}}, [{"name": "x"}], [{}],
)  # fmt: skip
"""What a setting, a column or a field of a message is replaced by."""
OPTIONS = (
    "--", "-", "--x", "--config", "--config=", "stray", "--seed", "--=", "-h1", "--bf16=maybe", "--seed=1=2", "日本語",
    "--日本語", "\udcff", "--learning_rate=-1e-3", "--debugg", "",
)  # fmt: skip
BYTES = (
    b"\xff\xfe", b"\x00", b"\t", b"{", b"]", b"&a *a", b"!!python/object:os.system", b"\n- x\n", b": : :", b"%", b"'",
    b'"', b"\xed\xa0\x80", b"2020-99-99", b"<<: *x", b"NaN", b"-Infinity",
)  # fmt: skip
COLUMNS = (
    "tools", "chat_template_kwargs", "weight", "train", "id", "margin", "thinking_budget", "task", "answer", "labels",
    "scores", "completions", "answers", "prompt", "text", "messages", "question", "step",
)  # fmt: skip
FIELDS = ("tool_calls", "reasoning_content", "weight", "train", "name", "from", "tool_call_id", "thinking")
WORK = ("max_steps", "epochs", "samples", "eval_samples", "curriculum_samples", "group_size", "prompts_per_step",
        "value_warmup_steps", "max_tokens", "teacher_timeout_s", "batch_size", "episode_epochs")  # fmt: skip
"""Settings that may validly ask for more work than anybody waits for: these stay small."""
SOURCES = ("dataset", "off_policy_dataset", "ptx_dataset", "thinking", "non_thinking", "candidates", "responses")
ALIGN = ("inspect", "inspect", "list", "report", "verify", "doctor", "merge", "pipeline")


@dataclass
class Case:
    """One run: of a recipe, or of `align` where `name` begins with it."""

    name: str
    what: str
    command_line: list[str]
    mutated: str = ""


class Fuzzer:
    """Makes case number `seed` from the files at `material`, in `folder`."""

    def __init__(self, material: Path, folder: Path, seed: int):
        self.material, self.folder, self.rng = material, folder, np.random.default_rng(seed)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    # --- cases ------------------------------------------------------------------------------------------------------

    def case(self) -> Case:
        kind = self.pick(("settings", "settings", "settings", "text", "options", "rows", "rows", "lines", "align"))
        if kind == "align":
            return self.align()
        name = self.pick(RECIPES)
        given = settings(name, self.material, self.folder / "out")
        if kind == "settings":
            what = self.mutate_settings(name, given)
            return Case(name, what, ["--config", str(self.write_yaml(given))])
        if kind == "text":
            path = self.write_yaml(given)
            what = self.mutate_bytes(path)
            return Case(name, what, ["--config", str(path)], "yaml")
        if kind == "options":
            line = arguments(given)
            return Case(name, self.mutate_options(line), line)
        what = self.mutate_data(given, kind)
        return Case(name, what, arguments(given))

    def align(self) -> Case:
        name = self.pick(ALIGN)
        line: list[str] = []
        what = "as it is"
        if name == "inspect":
            recipe = self.pick((*TRAINERS, "generate"))
            given = settings(recipe, self.material, self.folder / "out")
            kind = self.pick(("settings", "text", "rows"))
            what = self.mutate_settings(recipe, given) if kind == "settings" else what
            what = self.mutate_data(given, "rows") if kind == "rows" else what
            path = self.write_yaml(given)
            what = self.mutate_bytes(path) if kind == "text" else what
            line = ["--recipe", recipe, str(path)] if self.chance(0.8) else [str(path)]
        elif name == "merge":
            line, what = self.adapter()
        elif name == "pipeline":
            line, what = self.pipeline()
        elif name == "report":
            line, what = self.run_folder()
        elif name == "verify":
            rows = [{**row, "response": f"\\boxed{{{i}}}"} for i, row in enumerate(rows_of("prompts"))]
            rows, what = self.mutate_rows(rows)
            path = write_rows(self.folder / "rows.jsonl", rows)
            if self.chance(0.3):
                what += ", then " + self.mutate_bytes(path)
            verifier = self.pick(("math", "format", "choice", "json", "text", "ifeval", "citation", "language", "x"))
            line = [str(path), "--verifier", verifier]
        if self.chance(0.3) or what == "as it is":
            what += "; " + self.mutate_options(line)
        return Case(f"align {name}", what, line)

    def adapter(self) -> tuple[list[str], str]:
        """A folder of adapters with something wrong in one of its files."""
        folder = self.folder / "adapter"
        shutil.copytree(self.material / "adapter", folder)
        path = self.pick(sorted(folder.iterdir()))
        what = self.mutate_bytes(path)
        if path.suffix == ".json" and self.chance(0.5):
            content = json.loads((self.material / "adapter" / path.name).read_text())
            key = self.pick(sorted(content))
            content[key] = self.odd_value()
            path.write_text(json.dumps(content))
            what = f"{path.name}: {key}: {content[key]!r}"[:100]
        return [str(folder), "--output", str(self.folder / "merged")], what

    def pipeline(self) -> tuple[list[str], str]:
        """A dry run of a pipeline with something odd at some depth."""
        stage = {"name": "a", "recipe": "recipes.sft", "config": "recipe.yaml", "overrides": {"output_dir": "{here}"}}
        later = {
            "name": "b",
            "recipe": "recipes.dpo",
            "overrides": {"model_name_or_path": "{a.model}"},
            "inputs": ["x"],
        }
        stages = [{**stage, "outputs": {"model": "{here}/model"}}, later]
        content: Any = {"folder": str(self.folder / "out"), "variables": {"n": "1"}, "stages": stages}
        self.write_yaml(settings("sft", self.material, self.folder / "out"))
        place, what = content, "pipeline"
        while True:
            key = self.pick(sorted(place) if isinstance(place, dict) else range(len(place)))
            what += f", {key}"
            if self.chance(0.4) or not isinstance(place[key], dict | list):
                break
            place = place[key]
        place[key] = self.odd_value()
        path = self.folder / "pipeline.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        if self.chance(0.3):
            what = self.mutate_bytes(path)
        return [str(path), "--dry_run"], f"{what}: {place[key]!r}"[:100]

    def run_folder(self) -> tuple[list[str], str]:
        """A run's logs with something wrong in them."""
        folder = self.folder / "run"
        folder.mkdir()
        lines = [
            {"step": i, "time": 1e9 + i, "kind": "train", "loss": 1 / (i + 1), "grad_norm": 1.0, "learning_rate": 1e-3}
            for i in range(5)
        ]
        samples = [{"step": 1, "prompt": "q", "completion": "a", "reward": 1.0, "reward_terms": {"math": 1.0}}]
        write_rows(folder / "metrics.jsonl", lines)
        write_rows(folder / "samples.jsonl", samples)
        (folder / "config.json").write_text(json.dumps({"seed": 1}))
        target = self.pick(("metrics.jsonl", "samples.jsonl", "config.json", "summary.json", "environment.json"))
        path = folder / target
        if not path.exists():
            path.write_text("{}")
        if target.endswith(".jsonl") and self.chance(0.6):
            rows, what = self.mutate_rows(lines if target == "metrics.jsonl" else samples)
            write_rows(path, rows)
        else:
            what = self.mutate_bytes(path)
        return [str(folder)], f"{target}: {what}"

    # --- settings ---------------------------------------------------------------------------------------------------

    def mutate_settings(self, name: str, given: dict[str, Any]) -> str:
        kind = self.pick(("value", "value", "value", "value", "value", "misspelt", "missing", "garbage", "env"))
        key = self.pick(sorted(given))
        if kind == "misspelt":
            given[self.misspell(key)] = given.pop(key)
            return f"{key} misspelt"
        if kind == "missing" and key not in WORK:
            del given[key]
            return f"{key} missing"
        if kind == "garbage":
            odd = self.pick((1, None, True, 1.5, "日本語", "", "config", "help", "no_bf16", "-", "a b"))
            given[odd] = self.pick(VALUES)
            return f"{odd!r}: {given[odd]!r}"[:100]
        if kind == "env":
            given["env"] = self.pick([*VALUES, {"A\x00": 1}, {"": "x"}, {"A=B": "x"}, {1: 2}, {"A": [1]}])
            return f"env: {given['env']!r}"[:100]
        hints = all_fields(name)
        changed = []
        for _ in range(self.pick((1, 1, 2, 3))):
            key = self.pick(sorted(hints)) if self.chance(0.8) else key
            given[key] = self.value_for(key, hints.get(key) if self.chance(0.7) else None)
            changed.append(f"{key}: {given[key]!r}"[:100])
        return ", ".join(changed)

    def value_for(self, key: str, hint: Any = None) -> Any:
        """With a type one of its values, whether it makes sense or not."""
        pool = [v for v in VALUES if v not in (1e308, 10**30)] if key in WORK else VALUES
        if get_origin(hint) is Literal:
            return self.pick(get_args(hint))
        fitting = [v for v in pool if hint is None or _fits(v, hint)]
        return self.pick(fitting or pool)

    def misspell(self, key: str) -> str:
        i = int(self.rng.integers(len(key)))
        ways = (key[:i] + key[i + 1 :], key[:i] + key[i] + key[i:], key.upper(), key[:i] + "_" + key[i:])
        return self.pick(ways) or "x"

    def write_yaml(self, given: dict[Any, Any]) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(given, allow_unicode=self.chance(0.5)), encoding="utf-8")
        return path

    def mutate_options(self, line: list[str]) -> str:
        place = int(self.rng.integers(len(line) + 1))
        kind = self.pick(("drop", "insert", "value", "twice"))
        if not line or kind == "insert":
            extra = self.pick(OPTIONS)
            line.insert(place, extra)
            return f"{extra!a} inserted"
        place = min(place, len(line) - 1)
        old = line[place]
        if kind == "drop":
            del line[place]
            return f"{old!r} dropped"[:100]
        if kind == "twice":
            line.insert(place, old)
            return f"{old!r} twice"[:100]
        before = line[place - 1].lstrip("-") if place else ""
        value = self.value_for(before)
        line[place] = str(value).replace("\x00", "")  # a command line cannot hold it
        return f"{old!r} replaced by {value!r}"[:100]

    # --- files ------------------------------------------------------------------------------------------------------

    def mutate_bytes(self, path: Path) -> str:
        data = path.read_bytes()
        i, j = sorted(int(x) for x in self.rng.integers(0, len(data) + 1, 2))
        extra = self.pick(BYTES)
        made = {
            "cut": data[:i],
            "noise": data[:i] + self.rng.bytes(8) + data[i:],
            "empty": b"",
            "binary": self.rng.bytes(300),
            "inserted": data[:i] + extra + data[i:],
            "removed": data[:i] + data[j:],
            "nested": b"[" * 100_000 + data,
            "bom": b"\xef\xbb\xbf" + data,
            "utf16": data.decode("utf-8", "replace").encode("utf-16"),
            "huge number": re.sub(rb"\d+", b"9" * 5000, data, count=1),
        }
        kind = self.pick(sorted(made))
        path.write_bytes(made[kind])
        return f"{path.name}: {kind} {extra if kind == 'inserted' else ''}"

    def mutate_data(self, given: dict[str, Any], kind: str) -> str:
        """Other data files in place of a recipe's own."""
        key = self.pick([k for k in SOURCES if isinstance(given.get(k), list) or Path(given.get(k, "")).is_file()])
        source = Path(given[key][0] if isinstance(given[key], list) else given[key])
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        path = self.folder / source.name
        if kind == "rows":
            rows, what = self.mutate_rows(rows)
            write_rows(path, rows)
        else:
            write_rows(path, rows)
            what = self.mutate_bytes(path)
        given[key] = [str(path)] if isinstance(given[key], list) else str(path)
        return f"{key}: {what}"

    # --- rows -------------------------------------------------------------------------------------------------------

    def mutate_rows(self, rows: list[dict[str, Any]]) -> tuple[list[Any], str]:
        """One row, or every row in the same way."""
        kind = self.pick(("column", "column", "message", "message", "message", "extra", "odd", "none", "again"))
        if kind == "none":
            return [], "no rows"
        if kind == "again":
            return rows + rows, "every row twice"
        chosen = rows if self.chance(0.3) else [self.pick(rows)]
        if kind == "odd":
            odd = self.pick((None, 1, "text", [], [1], True, {}))
            return [odd if row in chosen else row for row in rows], f"a row that is {odd!r}"
        state = self.rng.bit_generator.state
        what = ""
        for row in chosen:
            self.rng.bit_generator.state = state
            what = getattr(self, f"_{kind}")(row)
        return rows, what + (" in all rows" if chosen is rows else "")

    def odd_value(self) -> Any:
        return self.pick([*VALUES, "\ud800", "<|im_end|>", "<think>", "long " * 3000, {"role": "user"}, [["a"]], "{}"])

    def _column(self, row: dict[str, Any]) -> str:
        name = self.pick(sorted(row))
        kind = self.pick(("missing", "renamed", "value", "value", "value"))
        value = row.pop(name)
        if kind == "renamed":
            row[self.misspell(name)] = value
        elif kind == "value":
            row[name] = self.odd_value()
            return f"{name}: {row[name]!r}"[:100]
        return f"{name} {kind}"

    def _extra(self, row: dict[str, Any]) -> str:
        name = self.pick(COLUMNS)
        row[name] = self.odd_value()
        return f"{name}: {row[name]!r}"[:100]

    def _message(self, row: dict[str, Any]) -> str:
        lists = [name for name in sorted(row) if isinstance(row[name], list) and row[name]]
        if not lists:
            return self._column(row)
        name = self.pick(lists)
        messages = row[name]
        kind = self.pick(("value", "value", "key", "extra", "order", "empty", "repeat", "odd", "role", "long"))
        message = self.pick(messages)
        if not isinstance(message, dict) or not message:
            kind = "empty"
        if kind == "value":
            key = self.pick(sorted(message))
            message[key] = self.odd_value()
            return f"{key} of a message in {name}: {message[key]!r}"[:100]
        if kind == "key":
            del message[self.pick(sorted(message))]
        elif kind == "extra":
            key = self.pick(FIELDS)
            message[key] = self.pick([self.odd_value(), [{"function": {"name": "f", "arguments": self.odd_value()}}]])
            return f"{key} of a message in {name}: {message[key]!r}"[:100]
        elif kind == "order":
            messages.reverse()
        elif kind == "repeat":
            messages.extend([dict(message), *chat(1)][: int(self.rng.integers(1, 4))])
        elif kind == "odd":
            messages[int(self.rng.integers(len(messages)))] = self.odd_value()
        elif kind == "role":
            message["role"] = self.pick(("system", "tool", "assistant", "user", "gpt", "", "User", "日本語"))
        elif kind == "long":
            message["content"] = "word " * 6_000
        else:
            row[name] = []
        return f"{kind} in {name}"


def all_fields(name: str) -> dict[str, Any]:
    """The type of every setting of a recipe."""
    module = importlib.import_module(f"recipes.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")]
    chosen = [kind for kind in kinds if kind.__name__.endswith(("Recipe", "Config"))]
    return {setting: hint for kind in chosen for setting, hint in get_type_hints(kind).items()}

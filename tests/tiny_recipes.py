"""Every recipe at its smallest: a model, rows and settings on disk, and processes that run the scripts' `run(main)`.

`write_material` makes the files once. A recipe is run in a forked process (imports cost more than the training does);
it is a process like another: it can be killed, and what it leaves is on disk only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_model, tiny_tokenizer

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
TRAINERS = ("sft", "reward_model", "dpo", "online_dpo", "ppo", "grpo", "distill")
RECIPES = (*TRAINERS, "generate", "verify", "fusion", "cold_start", "select_queries")
MODEL = {"model_name_or_path": "{material}/model"}
SAMPLING = {"rewards": ["tests.tiny_recipes:share_of_low_tokens"], "max_tokens": 6, "max_rows_in_flight": 8}
TRAINING = {"output_dir": "{output}", "max_steps": 2, "learning_rate": 3e-3, "warmup_steps": 1, **MODEL}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"dataset": "{material}/messages.jsonl", "batch_size": 4, "max_length": 64, **TRAINING},
    "reward_model": {"dataset": "{material}/pairs.jsonl", "batch_size": 4, "max_length": 64, **TRAINING},
    "dpo": {"dataset": "{material}/pairs.jsonl", "batch_size": 4, "max_length": 64, **TRAINING},
    "online_dpo": {
        "dataset": "{material}/prompts.jsonl",
        "prompts_per_step": 3,
        "group_size": 3,
        **SAMPLING,
        **TRAINING,
    },
    "ppo": {
        "dataset": "{material}/prompts.jsonl",
        "prompts_per_step": 3,
        "group_size": 2,
        "value_warmup_steps": 1,
        "ptx_dataset": "{material}/text.jsonl",
        "ptx_coef": 0.1,
        **SAMPLING,
        **TRAINING,
    },
    "grpo": {
        "dataset": "{material}/prompts.jsonl",
        "prompts_per_step": 3,
        "group_size": 3,
        "curriculum_samples": 2,
        "curriculum": "variance",
        **SAMPLING,
        **TRAINING,
    },
    "distill": {
        "dataset": "{material}/prompts.jsonl",
        "off_policy_dataset": "{material}/messages.jsonl",
        "batch_size": 6,
        "on_policy_share": 0.5,
        "teachers": ["{material}/teacher"],
        "soft_targets": "stored",
        "teacher_top_k": 4,
        "max_tokens": 6,
        "max_length": 64,
        **TRAINING,
    },
    "generate": {
        "dataset": "{material}/prompts.jsonl",
        "samples": 2,
        "responses": "{output}/responses.jsonl",
        **SAMPLING,
        **MODEL,
    },
    "verify": {
        "dataset": "{material}/prompts.jsonl",
        "samples": 2,
        "responses": "{output}/verdicts.jsonl",
        "max_tokens": 6,
        **MODEL,
    },
    "fusion": {
        "thinking": ["{material}/thinking.jsonl"],
        "non_thinking": ["{material}/messages.jsonl"],
        "output": "{output}/mixture.jsonl",
        **MODEL,
    },
    "cold_start": {
        "candidates": ["{material}/responses.jsonl"],
        "output": "{output}/rows.jsonl",
        "min_thinking_words": 5,
    },
    "select_queries": {"responses": ["{material}/responses.jsonl"], "output": "{output}/queries.jsonl"},
}
"""Of a run of one or two steps; `settings` fills in the two folders."""


def share_of_low_tokens(prompts, completions, completion_ids, **columns) -> list[float | None]:
    """A reward that a random model's samples differ in; some are unscored."""
    return [None if ids[0] % 11 == 0 else sum(i < 100 for i in ids) / len(ids) for ids in completion_ids]


def chat(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {i} + 3?"}, {"role": "assistant", "content": f"\\boxed{{{i + 3}}}"}]


def rows_of(kind: str, n: int = 12) -> list[dict[str, Any]]:
    """messages, text, pairs, prompts: the rows that recipes read."""
    if kind == "messages":
        return [{"messages": chat(i)} for i in range(n)]
    if kind == "text":
        return [{"text": f"The answer to {i} + 3 is {i + 3}."} for i in range(n)]
    if kind == "pairs":
        return [
            {"prompt": chat(i)[:1], "chosen": chat(i)[1:], "rejected": [{"role": "assistant", "content": f"{i}?"}]}
            for i in range(n)
        ]
    if kind == "responses":
        text = "<think>{} so we add three to the number that is given and say what comes out of it</think>\\boxed{{{}}}"
        return [
            {
                "prompt_id": f"p{i}",
                "prompt": chat(i)[:1],
                "answer": str(i + 3),
                "sample": j,
                "score": float(j == 0),
                "response": text.format(i, i + 3 + j),
                "finish_reason": "stop",
                "tokens": 20,
            }
            for i in range(n)
            for j in range(2)
        ]
    return [{"id": f"p{i}", "prompt": chat(i)[:1], "answer": str(i + 3)} for i in range(n)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_material(folder: Path) -> Path:
    """`model`, `teacher`, `adapter` (of model) and a JSONL file for each kind of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("model", 0), ("teacher", 7)):
        tiny_model("qwen3", seed=seed, **SHAPE).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(folder / "adapter")
    for kind in ("messages", "text", "pairs", "prompts", "responses"):
        write_rows(folder / f"{kind}.jsonl", rows_of(kind))
    thoughtful = [
        {"messages": [chat(i)[0], {"role": "assistant", "content": f"<think>so</think>{i}"}]} for i in range(6)
    ]
    write_rows(folder / "thinking.jsonl", thoughtful)
    return folder


def settings(name: str, material: Path, output: Path) -> dict[str, Any]:
    """The keys and values of a run of one or two steps."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.format(material=material, output=output) if isinstance(value, str) else value

    return {key: filled(value) for key, value in SETTINGS[name].items()}


def arguments(given: dict[str, Any]) -> list[str]:
    """The settings as they stand on a command line."""
    out: list[str] = []
    for key, value in given.items():
        values = value if isinstance(value, list) else [value]
        out += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return out


def fork(work: Callable[[], Any], output: Path) -> int:
    """The id of a process that does `work`; what it prints goes to the file `output`. Its exit code is the one that a
    script would have."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")  # as Python opens them
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_script(name: str, command_line: Sequence[str]) -> None:
    """What `python recipes/NAME.py ARGUMENTS` does, without its imports."""
    import torch

    from recipes.common import run

    torch.set_num_threads(1)
    sys.argv = [f"{name}.py", *command_line]
    run(importlib.import_module(f"recipes.{name}").main)


def start_recipe(name: str, command_line: Sequence[str], output: Path) -> int:
    """Fork a process that runs a recipe; its id."""
    importlib.import_module(f"recipes.{name}")
    return fork(lambda: run_script(name, command_line), output)


def wait_for(pid: int) -> int:
    """The exit code; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""The training set of thinking-mode fusion, and a test set of mode following.

python recipes/fusion.py --model_name_or_path M --thinking accepted.jsonl --non_thinking rows.jsonl --output out.jsonl

Thinking rows (accepted responses of recipes/generate.py, its whole responses file, or conversations) and non-thinking
rows become one mixture with flags, for recipes/sft.py. `recipes/verify.py --verifier format` scores the mode tests.
What the mixture holds is printed and written beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.chat.messages import check_messages
from alignment.chat.template import ensure_chat_template
from alignment.chat.thinking import last_flag
from alignment.config import check_values, parse
from alignment.data.fusion import FusionConfig, fuse, non_thinking_rows, thinking_rows
from alignment.data.fusion_report import fusion_report
from alignment.data.load import load_rows
from alignment.data.mode_tests import mode_tests
from alignment.errors import UserError, about
from alignment.metrics import replace_file
from alignment.models.load import load_tokenizer
from recipes.common import run, save_rows


@dataclass
class FusionRecipe:
    model_name_or_path: str = field(default="", metadata={"help": "Whose tokenizer and chat template count."})
    thinking: list[str] = field(default_factory=list, metadata={"help": "Files or data sets of thinking rows."})
    non_thinking: list[str] = field(default_factory=list, metadata={"help": "Likewise of non-thinking rows."})
    output: str = field(default="", metadata={"help": "JSONL file of the mixture."})
    pass_score: float = field(default=1.0, metadata={"help": "Of responses files: the least score of a thinking row."})
    per_prompt: int = field(default=1, metadata={"help": "Of responses files: thinking rows per prompt at most."})
    mode_tests: str = field(default="", metadata={"help": "JSONL file of mode tests; empty = none."})
    mode_questions: str = field(default="", metadata={"help": "Held-out rows whose questions the mode tests ask."})
    debug: bool = False

    def __post_init__(self):
        for name in ("model_name_or_path", "thinking", "non_thinking", "output"):
            if not getattr(self, name):
                raise UserError(f"{name} is missing")
        check_values(self, "1 or more", "per_prompt")
        check_values(self, "a finite number", "pass_score")
        if self.mode_tests and not self.mode_questions:
            raise UserError("mode_questions is missing: held-out rows with `prompt`, `question` or `messages`")


def question_of(row: dict[str, Any]) -> str:
    """The first question of the user. Raises UserError when there is none."""
    content = next((row[name] for name in ("messages", "prompt", "question") if row.get(name) is not None), None)
    if isinstance(content, str):
        return content
    texts = [m["content"] for m in check_messages(content) if m["role"] == "user"] if content else []
    if not texts:
        raise UserError(f"a row without a question; its columns are {sorted(row)}")
    return texts[0]


def write_mode_tests(recipe: FusionRecipe, non_thinking: Sequence[dict[str, Any]], seed: int) -> None:
    singles = [row["messages"] for row in non_thinking if [m["role"] for m in row["messages"]] == ["user", "assistant"]]
    examples = [(q["content"], answer["content"]) for q, answer in singles if last_flag([q]) is None]
    questions = [question_of(row) for row in load_rows(recipe.mode_questions)]
    save_rows(recipe.mode_tests, mode_tests(questions, examples, seed), "mode tests")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe and returns what the mixture holds."""
    recipe, config = parse(FusionRecipe, FusionConfig, arguments=arguments)
    tokenizer = load_tokenizer(recipe.model_name_or_path)
    ensure_chat_template(tokenizer)
    counts: Counter[str] = Counter()
    thinking, non_thinking = [], []
    for source in recipe.thinking:
        rows = load_rows(source)
        with about(source):
            thinking += thinking_rows(rows, counts, recipe.pass_score, recipe.per_prompt)
    for source in recipe.non_thinking:
        rows = load_rows(source)
        with about(source):
            non_thinking += non_thinking_rows(rows, counts)
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()), flush=True)
    mixture = fuse(thinking, non_thinking, config)
    report = fusion_report(mixture, tokenizer)
    save_rows(recipe.output, mixture, "conversations")
    content = {**report.as_dict(), "rows_read": dict(counts)}
    replace_file(Path(f"{recipe.output}.report.json"), json.dumps(content, indent=2) + "\n")
    Console(highlight=False).print(report.table())
    if recipe.mode_tests:
        write_mode_tests(recipe, non_thinking, config.seed)
    return content


if __name__ == "__main__":
    run(main)

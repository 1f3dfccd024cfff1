"""GSM8K rows as SFT conversations and GRPO prompts, with a tokenizer and a small base model to start from.

    python -m recipes.quickstart.gsm8k --rows gsm8k_train.jsonl.gz --out runs/gsm8k/data

writes sft_train.jsonl, sft_heldout.jsonl, grpo_train.jsonl, grpo_heldout.jsonl and the checkpoint directory base/.
Rows are those of Cobbe et al. 2021 (arXiv 2110.14168): `question` and `answer`, a worked solution with calculator
marks `<<48/2=24>>` whose last line is `#### N`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.data.load import write_rows
from recipes.quickstart.model import write_base_model
from recipes.quickstart.tokenizer import build_tokenizer

HELDOUT_ONE_IN = 20
VOCAB_SIZE = 4096

_MARK = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"\n?####\s*(-?[\d,]*\.?\d+)\s*\Z")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl or .jsonl.gz file. Raises ValueError that names the file and line of a bad row."""
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                split_answer(row)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def split_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    """(worked solution without calculator marks, final number without thousands commas) of a GSM8K row.

    Raises ValueError if a column is missing or the answer does not end with `#### N`.
    """
    for column in ("question", "answer"):
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise ValueError(f"column {column!r} must hold text; GSM8K rows have the columns 'question' and 'answer'")
    final = _FINAL.search(row["answer"])
    if final is None:
        raise ValueError("the answer does not end with '#### ' and a number, as GSM8K answers do")
    return _MARK.sub("", row["answer"][: final.start()]).strip(), final[1].replace(",", "")


def _digest(question: str) -> str:
    return hashlib.sha256(" ".join(question.split()).casefold().encode()).hexdigest()


def is_heldout(question: str) -> bool:
    """Whether a question belongs to the held-out split (one in 20), whatever file or order it comes in."""
    return int(_digest(question), 16) % HELDOUT_ONE_IN == 0


def sft_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns id, messages (the question; the solution in a thinking block, then the boxed number) and answer."""
    solution, number = split_answer(row)
    reply = f"<think>\n{solution}\n</think>\n\nThe answer is \\boxed{{{number}}}."
    question = {"role": "user", "content": row["question"].strip()}
    return {
        "id": "gsm8k-" + _digest(row["question"])[:16],
        "messages": [question, {"role": "assistant", "content": reply}],
        "answer": number,
    }


def grpo_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns id, prompt (messages) and answer."""
    full = sft_row(row)
    return {"id": full["id"], "prompt": full["messages"][:1], "answer": full["answer"]}


def convert(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The four row sets by name. Raises ValueError if a split is empty."""
    parts = {
        "train": [r for r in rows if not is_heldout(r["question"])],
        "heldout": [r for r in rows if is_heldout(r["question"])],
    }
    for name, part in parts.items():
        if not part:
            raise ValueError(f"no row of the {len(rows)} given falls into the {name} split; give more rows")
    return {
        f"{kind}_{name}": [convert_row(r) for r in part]
        for kind, convert_row in (("sft", sft_row), ("grpo", grpo_row))
        for name, part in parts.items()
    }


def prepare(rows_path: str | Path, out: str | Path, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> dict[str, int]:
    """Convert the file, train the tokenizer on the training conversations, write everything below `out`.

    Returns the sizes: rows per file, vocabulary.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    sets = convert(read_rows(rows_path))
    for name, rows in sets.items():
        write_rows(out / f"{name}.jsonl", rows)
    tokenizer = build_tokenizer((m["content"] for r in sets["sft_train"] for m in r["messages"]), vocab_size)
    write_base_model(out / "base", tokenizer, "gsm8k", seed)
    return {**{name: len(rows) for name, rows in sets.items()}, "vocabulary": len(tokenizer)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart.gsm8k", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True, help="GSM8K rows, .jsonl or .jsonl.gz")
    parser.add_argument("--out", required=True, help="directory to write into")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--seed", type=int, default=0, help="of the base model's weights")
    args = parser.parse_args(argv)
    for name, size in prepare(args.rows, args.out, args.vocab_size, args.seed).items():
        print(f"{name:14} {size:6}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()

"""The rows, tokenizer and random model that the tiny run of the four stages starts from.

python -m recipes.qwen3.tiny --output_dir runs/qwen3_tiny/data --scale 1

All made from a seed. The strong model whose responses the cold start filters is played by the task's own solutions,
some of them spoilt in the ways that the filters are there for.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.data.load import write_rows
from recipes.quickstart.model import write_base_model
from recipes.quickstart.task import format_solution, prompt_rows
from recipes.quickstart.tokenizer import build_tokenizer
from recipes.qwen3.tiny_tasks import Item, make_items, preference_pairs, problems

VOCABULARY = 1024
Row = dict[str, Any]
# Rows at scale 1, the length of docs/qwen3.md.
SIZES = {
    "pretrain": 20000,
    "cold_start": 800,
    "reasoning": 1200,
    "heldout": 300,
    "general": 840,
    "general_heldout": 112,
    "non_thinking": 900,
    "preferences": 300,
}
LONG_QUESTION = (
    "A farmer has 12 cows and 15 sheep, buys 20 more sheep at the market and gives 7 cows to a friend in the village. "
    "How many animals are left?"
)


def answered_at_once(row: Row) -> Row:
    answer = {"role": "assistant", "content": f"The answer is \\boxed{{{row['answer']}}}."}
    return {"messages": [row["messages"][0], answer]}


def pretraining(items: Sequence[Item], rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """What a base model has seen: every task answered at once, and arithmetic worked out in the open or answered at
    once. No thinking block anywhere."""
    out = [item.conversation() for item in items]
    for row in rows:
        answer = f"The answer is \\boxed{{{row['answer']}}}."
        thinking = row["messages"][-1]["content"].split("</think>")[0].removeprefix("<think>\n").strip()
        reply = answer if rng.random() < 0.3 else f"{thinking}\n{answer}"
        out.append({"messages": [row["messages"][0], {"role": "assistant", "content": reply}]})
    rng.shuffle(out)
    return out


def candidates(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """Two responses to every query, as recipes/generate.py writes them; half of the queries have a spoilt one."""
    out = []
    for row in rows:
        (prompt,) = prompt_rows([row])
        good = row["messages"][-1]["content"]
        for sample in range(2):
            text, reason = (good, "stop") if sample or rng.random() < 0.5 else _spoilt(row, good, rng)
            own = {"prompt_id": row["id"], "sample": sample, "response": text, "finish_reason": reason, "score": 1.0}
            out.append({**prompt, **own})
    return out


def _spoilt(row: Row, good: str, rng: random.Random) -> tuple[str, str]:
    thinking = good.split("</think>")[0].removeprefix("<think>\n").strip()
    other = str(int(row["answer"] or 0) + rng.randint(1, 9))
    return rng.choice(
        [
            (format_solution([thinking], other), "stop"),  # a wrong answer
            (format_solution([thinking] * 12, str(row["answer"])), "stop"),  # in a loop
            (format_solution(["I guess."], str(row["answer"])), "stop"),
            (format_solution([f"{thinking}", f"0+{other}={other}"], str(row["answer"])), "stop"),  # thinks otherwise
            (format_solution([f"然后 {thinking}"], str(row["answer"])), "stop"),  # in two languages
            (good[: len(good) // 2], "length"),
        ]
    )


def unfit_queries(n: int, rng: random.Random) -> list[Row]:
    """Queries that the query filters and the comparison with validation items are there for."""
    rows = []
    for i in range(n):
        a, b = rng.randint(10, 40), rng.randint(2, 9)
        question, answer = (
            (f"Write something nice about the number {a}.", None),
            (f"(a) Compute {a}+{b}. (b) Compute {a}-{b}.", str(a + b)),
            (LONG_QUESTION.replace("12", str(a)).replace("15", str(b)), str(a + b + 20 - 7)),
        )[i % 3]
        lines = [f"{a}+{b}={a + b}", f"{a + b}+20={a + b + 20}", f"{a + b + 20}-7={a + b + 13}"][
            : 3 if i % 3 == 2 else 1
        ]
        messages = [{"role": "user", "content": question},
                    {"role": "assistant", "content": format_solution(lines, answer or "nice")}]  # fmt: skip
        row = {"id": f"unfit-{i}", "question": question, "answer": answer, "domain": "other", "style": "worked"}
        rows.append({**row, "messages": messages})
    return rows


def write_all(folder: Path, scale: float, seed: int) -> None:
    size = {name: max(8, round(scale * n)) for name, n in SIZES.items()}
    rng = random.Random(f"tiny/{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    arithmetic = problems(size["pretrain"] // 2 + size["cold_start"] + size["reasoning"], seed)
    first, second = size["pretrain"] // 2, size["pretrain"] // 2 + size["cold_start"]
    seen, cold, reasoning = arithmetic[:first], arithmetic[first:second], arithmetic[second:]
    heldout = problems(2 * size["heldout"], seed, "heldout")
    pretrain = pretraining(make_items(size["pretrain"] // 2, seed), seen, rng)
    queries = [*cold, *unfit_queries(max(3, size["cold_start"] // 20), rng)]
    rng.shuffle(queries)
    write_rows(folder / "pretrain.jsonl", pretrain)
    write_rows(folder / "queries.jsonl", prompt_rows(queries))
    write_rows(folder / "candidates.jsonl", candidates(queries, rng))
    write_rows(folder / "reasoning.jsonl", prompt_rows([*reasoning, *cold[: len(cold) // 10]]))
    # without the held-out stories: all stories come from a few forms, so that the rule would call every one too near
    validation = [row for row in heldout[: size["heldout"]] if row["domain"] != "story"]
    write_rows(folder / "validation.jsonl", [{"question": LONG_QUESTION}, *prompt_rows(validation)])
    write_rows(folder / "heldout.jsonl", prompt_rows(heldout[: size["heldout"]]))
    write_rows(folder / "mode_questions.jsonl", prompt_rows(heldout[size["heldout"] :]))
    # fusion is told that these answers do not think; arithmetic too has to be answered at once then
    direct = [answered_at_once(row) for row in seen[: size["non_thinking"] // 3]]
    items = [i for i in make_items(size["non_thinking"], seed + 1) if "/think" not in i.question]
    write_rows(folder / "non_thinking.jsonl", [*direct, *(item.conversation() for item in items)])
    for name, offset in (("general", 2), ("general_heldout", 3)):
        general = make_items(size[name], seed + offset)
        write_rows(folder / f"{name}.jsonl", [_general_row(item, f"{name}-{i}", rng) for i, item in enumerate(general)])
    write_rows(folder / "preferences.jsonl", preference_pairs(size["preferences"], seed))
    texts = [m["content"] for row in pretrain for m in row["messages"]]
    calls = [json.dumps(m["tool_calls"]) for row in pretrain for m in row["messages"] if m.get("tool_calls")]
    schemas = [json.dumps(row["tools"]) for row in pretrain if row.get("tools")]
    flags = ["/think /no_think <tool_call> </tool_call> <tool_response> </tool_response>"] * 50
    write_base_model(
        folder / "base", build_tokenizer([*texts, *calls, *schemas, *flags], VOCABULARY), "qwen3_tiny", seed
    )


def _general_row(item: Item, row_id: str, rng: random.Random) -> Row:
    """Most prompts ask for an answer without thinking; those of the mode tasks say so themselves. Some tasks fix the
    mode that their format is checked in, and there nothing else is asked for."""
    if "think" in item.question:
        return item.prompt_row(row_id)
    thinks = item.columns.get("mode") != "no_think" and item.task in ("sums", "money") and rng.random() < 0.5
    return item.prompt_row(row_id, "/think" if thinks else "/no_think")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="1: the rows of docs/qwen3.md; 0.01: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_all(options.output_dir, options.scale, options.seed)
    for path in sorted(options.output_dir.glob("*.jsonl")):
        print(f"{path.name:24} {sum(1 for _ in path.open()):6} rows")


if __name__ == "__main__":
    main()

"""What thinking-mode fusion does on the quickstart's task: mode following, and accuracy against the thinking budget.

    python -m benchmarks.evidence_thinking --quickstart runs/quickstart --folder runs/evidence_thinking

The quickstart's GRPO model always thinks. Each seed samples it for thinking rows, makes a mixture with non-thinking
rows and flags, fine-tunes on it, and measures before and after, all with the ordinary recipes. Seeds differ in samples,
mixture and order of the rows. Seeds that are done are not done again.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import of_seeds, print_table
from benchmarks.rows import write_rows
from benchmarks.statistics import interval

BUDGETS = (0, 8, 16, 24, 32, 48)
NON_THINKING, BUDGET_PROBLEMS = 1500, 200
SFT = {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3, "min_learning_rate": 1e-4, "lr_schedule": "cosine"}
MODELS = ("before", "after")


def fuse(quickstart: Path, model: Path, folder: Path, seed: int) -> Path:
    """Stage 3 from the model's own accepted responses; returns the fused model."""
    import recipes.fusion
    import recipes.generate
    import recipes.sft

    data = quickstart / "data"
    prompts = [json.loads(line) for line in (data / "grpo.jsonl").read_text().splitlines()]
    demonstrations = [json.loads(line) for line in (data / "sft.jsonl").read_text().splitlines()]
    answers = [
        {"prompt": row["question"], "completion": f"The answer is \\boxed{{{row['answer']}}}."}
        for row in demonstrations[seed * NON_THINKING : (seed + 1) * NON_THINKING]
    ]
    given = ["--model_name_or_path", str(model), "--dataset", write_rows(folder / "prompts.jsonl", prompts[::2])]
    given += ["--responses", str(folder / "responses.jsonl"), "--accepted", str(folder / "thinking.jsonl")]
    given += ["--samples", "4", "--per_prompt", "4", "--max_tokens", "96", "--max_rows_in_flight", "256"]
    recipes.generate.main([*given, "--seed", str(seed)])
    given = ["--model_name_or_path", str(model), "--thinking", str(folder / "thinking.jsonl")]
    given += ["--non_thinking", write_rows(folder / "non_thinking.jsonl", answers)]
    given += ["--output", str(folder / "mixture.jsonl"), "--seed", str(seed)]
    given += ["--mode_tests", str(folder / "mode_tests.jsonl"), "--mode_questions", str(data / "heldout.jsonl")]
    recipes.fusion.main(given)
    given = ["--model_name_or_path", str(model), "--dataset", str(folder / "mixture.jsonl"), "--max_length", "512"]
    given += [part for name, value in SFT.items() for part in (f"--{name}", str(value))]
    recipes.sft.main([*given, "--overflow", "error", "--output_dir", str(folder / "fused"), "--seed", str(seed)])
    return folder / "fused" / "model"


def measure(quickstart: Path, model: Path, folder: Path, seed: int, name: str) -> dict[str, Any]:
    """Mode following by kind of test, accuracy with each budget, and accuracy without thinking."""
    import recipes.verify

    responses = folder / f"modes-{name}.jsonl"
    common = ["--model_name_or_path", str(model), "--max_rows_in_flight", "256", "--seed", str(seed), "--k", "1"]
    tests = ["--dataset", str(folder / "mode_tests.jsonl"), "--verifier", "format", "--samples", "1"]
    recipes.verify.main([*common, *tests, "--max_tokens", "96", "--responses", str(responses)])
    by_kind: dict[str, list[float]] = defaultdict(list)
    for line in responses.read_text().splitlines():
        record = json.loads(line)
        by_kind[record["domain"]].append(record["score"])
    heldout = [json.loads(line) for line in (quickstart / "data" / "heldout.jsonl").read_text().splitlines()]
    heldout = heldout[:BUDGET_PROBLEMS]
    problems = ["--dataset", write_rows(folder / "heldout.jsonl", heldout), "--verifier", "math", "--samples", "2"]
    budgets = ["--thinking_budgets", ",".join(map(str, BUDGETS)), "--figure", str(folder / f"budgets-{name}.png")]
    curve = recipes.verify.main([*common, *problems, *budgets, "--max_tokens", "240"])
    plain = [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in heldout]
    problems = ["--dataset", write_rows(folder / "no_think.jsonl", plain), "--verifier", "math", "--samples", "2"]
    keys = ("budget", "pass_rate", "tokens", "stopped")
    return {
        "modes": {kind: sum(scores) / len(scores) for kind, scores in sorted(by_kind.items())},
        "budgets": [{key: point[key] for key in keys} for point in curve["points"]],
        "no_think": recipes.verify.main([*common, *problems, "--max_tokens", "96"])["pass_rate"],
    }


def run_seed(quickstart: Path, model: Path, folder: Path, seed: int) -> dict[str, Any]:
    fused = fuse(quickstart, model, folder, seed)
    report = json.loads((folder / "mixture.jsonl.report.json").read_text())
    found = {name: measure(quickstart, m, folder, seed, name) for name, m in zip(MODELS, (model, fused), strict=True)}
    return {"seed": seed, "mixture": report["answers"], **found}


# --- all of them ------------------------------------------------------------------------------------------------------


def following(result: dict[str, Any], model: str) -> dict[str, float]:
    """Share of tests in which the mode was the one asked for: by asked mode, and where an earlier flag or another turn
    asks for the opposite."""
    modes = result[model]["modes"]
    groups = {
        "thinking asked": [kind for kind in modes if kind.endswith(": thinking")],
        "no_think asked": [kind for kind in modes if kind.endswith(": no_think")],
        "flags that contradict": [kind for kind in modes if kind.split(":")[0] in CONTRADICTING],
        "all": list(modes),
    }
    return {name: sum(modes[kind] for kind in kinds) / len(kinds) for name, kinds in groups.items()}


CONTRADICTING = ("two in one turn", "user against system", "turn against earlier turn")


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Before and after: mean over seeds and half of its 95 % interval, in percent."""
    table = {}
    for model in MODELS:
        columns: dict[str, list[float]] = defaultdict(list)
        for result in results:
            for name, share in following(result, model).items():
                columns[f"mode followed, {name}"].append(100 * share)
            for point in result[model]["budgets"]:
                columns[f"accuracy, budget {point['budget']}"].append(100 * point["pass_rate"])
            columns["accuracy, enable_thinking=False"].append(100 * result[model]["no_think"])
        table[model] = {name: interval(values) for name, values in columns.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, required=True, help="the folder of a finished quickstart")
    parser.add_argument("--model", type=Path, help="the model that always thinks; default: the quickstart's GRPO model")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    model = options.model or options.quickstart / "grpo" / "model"
    one = functools.partial(run_seed, options.quickstart, model)
    print_table(summarise(of_seeds("evidence_thinking", options.folder, options.seeds, one)), digits=1)


if __name__ == "__main__":
    main()

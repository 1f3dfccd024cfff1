"""The quickstart: a reasoning model from random weights on a CPU, in minutes. `make quickstart`

Makes problems, tokenizer and a small Qwen3-architecture model, then runs the ordinary recipes on them: SFT cold start,
GRPO with variance-ordered prompts, distillation into a smaller student. With --full
(`make quickstart FULL=1`) there are also preference pairs of the SFT model's own responses, a reward model, and DPO and
PPO between SFT and GRPO. Held-out pass rates are measured after each stage with the same verifier. Finished stages are
not run again; delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import recipes.grpo
import recipes.sft
import recipes.verify
from alignment.data.load import write_rows
from alignment.errors import UserError
from alignment.metrics import read_metrics
from alignment.report import ReportStage, write_report
from recipes.common import run
from recipes.quickstart import full, student
from recipes.quickstart.model import write_base_model
from recipes.quickstart.task import make_problems, prompt_rows
from recipes.quickstart.tokenizer import build_tokenizer

HERE = Path(__file__).parent
VOCABULARY = 512
STUDENT_RUNS = (
    ("Student SFT", "student_sft"),
    ("Off-policy", "student_off_policy"),
    ("On-policy", "student_on_policy"),
)
FULL_RUNS = (("Reward model", "reward_model"), ("DPO", "dpo"), ("PPO", "ppo"))
SFT_ROWS, GRPO_PROMPTS, HELDOUT_SFT, HELDOUT_PROBLEMS, HELDOUT_SAMPLES = 8000, 1500, 200, 300, 4
TERSE_SHARE = 0.4  # of the demonstrations give the result without working it out


def prepare(folder: Path, seed: int) -> None:
    """Problems, tokenizer and base model of one seed."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    demonstrations = make_problems(SFT_ROWS, seed, terse_share=TERSE_SHARE)
    prompts = make_problems(GRPO_PROMPTS, seed + 1, exclude={row["id"] for row in demonstrations})
    heldout = make_problems(HELDOUT_SFT + HELDOUT_PROBLEMS, seed + 2, split="heldout")
    write_rows(data / "sft.jsonl", demonstrations)
    write_rows(data / "grpo.jsonl", prompt_rows(prompts))
    write_rows(data / "heldout_sft.jsonl", heldout[:HELDOUT_SFT])
    write_rows(data / "heldout.jsonl", prompt_rows(heldout[HELDOUT_SFT:]))
    texts = (message["content"] for row in demonstrations for message in row["messages"])
    write_base_model(folder / "base", build_tokenizer(texts, VOCABULARY), "quickstart", seed)
    (folder / "seed.json").write_text(str(seed))  # last: what is there is whole


def measure(folder: Path, model: Path, seed: int) -> dict[str, Any]:
    """Held-out pass rate of a model, by the recipe users measure with."""
    arguments = ["--model_name_or_path", str(model), "--dataset", str(folder / "data" / "heldout.jsonl")]
    arguments += ["--verifier", "math", "--samples", str(HELDOUT_SAMPLES), "--k", "1", "--max_tokens", "96"]
    return recipes.verify.main([*arguments, "--seed", str(seed), "--max_rows_in_flight", "128"])


def stage(folder: Path, name: str, title: str, train: Callable[[], None] | None, seed: int) -> dict[str, Any]:
    """Run a stage unless its result is there; returns its line of the summary."""
    result = folder / name / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    Console().rule(title)
    started = time.perf_counter()
    if train:
        train()
    seconds = time.perf_counter() - started
    measured = measure(folder, folder / name / "model" if train else folder / name, seed)
    keys = ("pass_rate", "ci_low", "ci_high", "problems", "samples")
    line = {"name": title, **{key: measured[key] for key in keys}, "seconds": round(seconds, 1)}
    result.write_text(json.dumps(line))
    return line


def show(stages: list[dict[str, Any]]) -> None:
    table = Table(title="Held-out pass rate after each stage (95 % interval, clustered by problem)")
    for column in ("stage", "pass rate", "95 % interval", "problems x samples", "training"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for s in stages:
        interval = f"{s['ci_low']:.1%} – {s['ci_high']:.1%}"
        count = f"{s['problems']:.0f} x {s['samples'] / s['problems']:.0f}"
        table.add_row(s["name"], f"{s['pass_rate']:.1%}", interval, count, f"{s['seconds']:.0f} s")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="also reward model, DPO and PPO (about 20 minutes in all)")
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args()
    folder, seed = options.output_dir, options.seed
    made = folder / "seed.json"
    if not made.is_file():
        prepare(folder, seed)
    elif json.loads(made.read_text()) != seed:
        raise UserError(f"{folder} holds seed {made.read_text()}: give another --output_dir, or delete the folder")
    data = folder / "data"

    def sft() -> None:
        paths = ["--model_name_or_path", str(folder / "base"), "--dataset", str(data / "sft.jsonl")]
        paths += ["--eval_dataset", str(data / "heldout_sft.jsonl"), "--output_dir", str(folder / "sft")]
        recipes.sft.main(["--config", str(HERE / "sft.yaml"), *paths, "--seed", str(seed)])

    # each chain has its own GRPO model and students, so that one folder can hold both
    before, grpo_name, students = ("ppo", "grpo_after_ppo", "after_ppo/") if options.full else ("sft", "grpo", "")

    def grpo() -> None:
        paths = ["--model_name_or_path", str(folder / before / "model"), "--dataset", str(data / "grpo.jsonl")]
        paths += ["--output_dir", str(folder / grpo_name)]
        recipes.grpo.main(["--config", str(HERE / "grpo.yaml"), *paths, "--seed", str(seed)])

    stages = [stage(folder, "base", "base", None, seed), stage(folder, "sft", "SFT", sft, seed)]
    runs = [ReportStage("SFT", folder / "sft")]
    summary: dict[str, Any] = {"seed": seed}
    if options.full:
        summary["reward_model"] = reward_model(folder, seed)
        stages.append(stage(folder, "dpo", "DPO", lambda: full.train_dpo(folder, seed), seed))
        stages.append(stage(folder, "ppo", "PPO", lambda: full.train_ppo(folder, seed), seed))
        runs += [ReportStage(name, folder / key) for name, key in FULL_RUNS]
    stages.append(stage(folder, grpo_name, "GRPO", grpo, seed))
    runs.append(ReportStage("GRPO", folder / grpo_name))
    stages += distill(folder, students, folder / grpo_name / "model", seed)
    runs += [ReportStage(name, folder / students / key) for name, key in STUDENT_RUNS]
    summary |= {"stages": stages, **headline(stages)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    report = folder / "report.html"
    write_report(report, "Quickstart", runs, summary)
    show(stages)
    if options.full:
        m = summary["reward_model"]
        interval = f"{m['ci_low']:.1%} – {m['ci_high']:.1%}"
        print(f"Reward model: {m['accuracy']:.1%} of held-out pairs in the right order (95 % interval {interval})")
    print(f"Report: {report}")


def distill(folder: Path, students: str, teacher: Path, seed: int) -> list[dict[str, Any]]:
    """The student before and after SFT on demonstrations, and after both kinds of distillation. students: the part of
    the folder that is theirs."""
    home, data = folder / students, folder / "data"
    if not (home / "student" / "config.json").is_file():
        student.write_student(teacher, home / "student")
    trainings = (
        lambda: student.train_sft(home, data, seed),
        lambda: student.train_off_policy(home, data, teacher, seed),
        lambda: student.train_on_policy(home, data, teacher, seed),
    )
    lines = [stage(folder, f"{students}student", "Student", None, seed)]
    for (title, name), train in zip(STUDENT_RUNS, trainings, strict=True):
        lines.append(stage(folder, f"{students}{name}", title, train, seed))
    return lines


def headline(stages: list[dict[str, Any]]) -> dict[str, str]:
    """GRPO's pass rate, and what the student has of it by distillation and by SFT."""
    rate = {s["name"]: f"{s['pass_rate']:.1%}" for s in stages}
    others = f"base {rate['base']}; smaller student: {rate['On-policy']} distilled, {rate['Student SFT']} by SFT alone"
    return {"headline": rate["GRPO"], "headline_label": f"pass rate after GRPO ({others})"}


def reward_model(folder: Path, seed: int) -> dict[str, float]:
    """Pairs and reward model, unless they are there; its last evaluation."""
    if not (folder / "reward_model" / "result.json").is_file():
        Console().rule("reward model")
        if not (folder / "pairs" / "heldout.jsonl").is_file():
            full.make_pairs(folder, seed)
        full.train_reward_model(folder, seed)
        metrics = read_metrics(folder / "reward_model" / "metrics.jsonl", "eval")[-1]
        (folder / "reward_model" / "result.json").write_text(json.dumps(metrics))
    return json.loads((folder / "reward_model" / "result.json").read_text())


if __name__ == "__main__":
    run(main)

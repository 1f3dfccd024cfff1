"""What on-policy distillation gives a small student, beside GRPO and off-policy distillation, on the quickstart's task.

    python -m benchmarks.evidence_distill --quickstart runs/quickstart --teacher MODEL --folder runs/evidence_distill

The student is the teacher without one of its four layers, after a short SFT on demonstrations. Every arm goes on from
there; held-out pass rates are taken on the way, with the compute spent so far. GRPO has the quickstart's settings, four
times the samples per update and half as many updates again as the distillations. Seeds differ in the order of rows and
prompts, and in the samples. Seeds that are done are not done again.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import of_seeds, print_table
from benchmarks.rows import write_rows
from benchmarks.sides import ROOT
from benchmarks.statistics import interval

SEQUENCES, GRPO_SEQUENCES, GROUP = 64, 256, 8
PROBLEMS, SAMPLES, MAX_TOKENS, SFT_STEPS = 300, 2, 96, 60
ARMS: dict[str, list[tuple[str, int]]] = {
    "GRPO": [("GRPO", 60)],
    "on-policy": [("on-policy", 40)],
    "off-policy": [("off-policy", 40)],
    "off-policy, then on-policy": [("off-policy", 20), ("on-policy", 20)],
}
"""The parts of each and their updates, of SEQUENCES sequences; GRPO's of GRPO_SEQUENCES."""
LEARNING_RATES = {"GRPO": 2e-4, "on-policy": 3e-4, "off-policy": 1e-3}
ROWS = "teacher_rows.jsonl"


# --- compute ----------------------------------------------------------------------------------------------------------


class Meter:
    """Floating-point operations of a model's forward passes, in all: 2 per weight and token (arXiv 2001.08361); a
    training step's backward pass costs twice its forward pass. The head counts at every token, which is more than it
    is asked for."""

    def __init__(self) -> None:
        self.flops = 0.0
        self.cpu_seconds = 0.0

    def watch(self, model) -> Any:
        """Returns the handle that ends it."""
        import torch

        weights = sum(p.numel() for p in model.parameters())  # tied embeddings: the head's weights, counted once

        def count(_module, args, kwargs, _output) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            self.flops += 2 * weights * ids.numel() * (3 if torch.is_grad_enabled() else 1)

        return model.base_model.register_forward_hook(count, with_kwargs=True)


# --- one seed ---------------------------------------------------------------------------------------------------------


def make_start(quickstart: Path, teacher: Path, folder: Path, seed: int) -> Path:
    """The teacher with a layer less, fine-tuned on demonstrations."""
    import recipes.sft
    from recipes.quickstart.student import write_student

    write_student(teacher, folder / "base")
    given = ["--config", str(ROOT / "recipes/quickstart/student_sft.yaml")]
    given += ["--model_name_or_path", str(folder / "base")]
    given += ["--dataset", str(quickstart / "data" / "sft.jsonl"), "--output_dir", str(folder / "sft")]
    recipes.sft.main([*given, "--max_steps", str(SFT_STEPS), "--seed", str(seed), "--save_every", "0"])
    return folder / "sft" / "model"


def make_rows(quickstart: Path, teacher: Path, folder: Path) -> None:
    """The teacher's right responses to the training prompts, at most four each, and what sampling them cost; the same
    for all seeds."""
    from trl import ModelConfig

    from alignment.data.load import load_rows
    from alignment.data.prompts import build_prompts
    from alignment.models.load import load_policy
    from alignment.rollout import TransformersEngine
    from verifiers import verify_all

    meter, started = Meter(), time.process_time()
    policy, tokenizer = load_policy(ModelConfig(model_name_or_path=str(teacher), dtype="float32"))
    meter.watch(policy.model)
    prompts = build_prompts(load_rows(str(quickstart / "data" / "grpo.jsonl")), tokenizer, max_prompt_length=128)
    groups = TransformersEngine(policy.model, tokenizer, 256).generate(prompts, 4, _sampling(tokenizer, 0))
    rows = []
    for group in groups:
        verdicts = verify_all("math", [r.text for r in group], [group[0].prompt.row] * len(group))
        for text in dict.fromkeys(r.text for r, v in zip(group, verdicts, strict=True) if v.score == 1):
            rows.append({"prompt": group[0].prompt.messages, "completion": [{"role": "assistant", "content": text}]})
    write_rows(folder / ROWS, rows)
    spent = {"flops": meter.flops, "cpu_seconds": time.process_time() - started}
    (folder / f"{ROWS}.cost.json").write_text(json.dumps(spent))


def _sampling(tokenizer, seed: int):
    from alignment.chat.template import stop_token_ids
    from alignment.types import Sampling

    return Sampling(max_tokens=MAX_TOKENS, seed=seed, stop_token_ids=tuple(stop_token_ids(tokenizer)))


class Bench:
    """What the arms of one seed share."""

    def __init__(self, quickstart: Path, teacher: Path, start: Path, rows: Path, seed: int):
        from trl import ModelConfig

        from alignment.algorithms.teachers import DEFAULT, Teachers
        from alignment.data.load import load_rows
        from alignment.data.prompts import build_prompts
        from alignment.data.sft_rows import encode_sft_rows
        from alignment.models.load import load_policy, load_tokenizer
        from alignment.models.teacher import load_teacher, vocabulary_of
        from rewards import RewardRunner, get_reward

        self.seed, self.start = seed, ModelConfig(model_name_or_path=str(start), dtype="float32")
        self.tokenizer = load_tokenizer(str(start))
        self.load = lambda: load_policy(self.start)[0]
        config = ModelConfig(model_name_or_path=str(teacher), dtype="float32")
        import torch

        self.teacher = load_teacher(config, self.tokenizer, torch.device("cpu"))
        self.teachers = Teachers({DEFAULT: self.teacher}, vocabulary_of(self.tokenizer))
        data = quickstart / "data"
        self.prompts = build_prompts(load_rows(str(data / "grpo.jsonl")), self.tokenizer, max_prompt_length=128)
        heldout = load_rows(str(data / "heldout.jsonl"))[:PROBLEMS]
        self.heldout = build_prompts(heldout, self.tokenizer, max_prompt_length=128)
        self.rows, _ = encode_sft_rows(load_rows(str(rows)), self.tokenizer, 256)
        self.score = RewardRunner([("verifier:math", get_reward("verifier:math"), 1.0)], timeout_s=30)

    def pass_rate(self, policy) -> float:
        """Held out."""
        from alignment.rollout import TransformersEngine
        from recipes.common import sample_pass_rate

        engine = TransformersEngine(policy.model, self.tokenizer, max_rows=256)
        plain = _sampling(self.tokenizer, 1000 + self.seed)
        return sample_pass_rate(engine, self.heldout, SAMPLES, plain, self.score)["pass_rate"]

    def run(self, kind: str, steps: int, policy, output: Path, meter: Meter, learning_rate: float) -> list[dict]:
        """Train the policy in place; returns the evaluations, with the compute of training up to each."""
        from alignment.accelerator import make_accelerator
        from alignment.algorithms.distill import Distill, DistillConfig, OffPolicy, OnPolicy
        from alignment.algorithms.grpo import Grpo, GrpoConfig
        from alignment.config import TrainConfig
        from alignment.data.curriculum import Curriculum
        from alignment.models.student import Student
        from alignment.rollout import TransformersEngine
        from alignment.trainer import Evaluation, Trainer

        engine = TransformersEngine(policy.model, self.tokenizer, max_rows=256)
        sampling = _sampling(self.tokenizer, self.seed)
        algorithm: Any
        if kind == "GRPO":
            order = Curriculum([p.id for p in self.prompts], "random", self.seed)
            config = GrpoConfig(prompts_per_step=GRPO_SEQUENCES // GROUP, group_size=GROUP, clip_eps_high=0.28)
            algorithm, trained = Grpo(policy, engine, self.prompts, self.score, order, config, sampling), policy
        else:
            share = 0.0 if kind == "off-policy" else 1.0
            off = OffPolicy(self.rows, [None] * len(self.rows)) if kind == "off-policy" else None
            on = OnPolicy(self.prompts, engine, sampling) if kind == "on-policy" else None
            settings = DistillConfig(SEQUENCES, share, GROUP, "forward_kl", hard_coef=0.0)
            trained = Student(policy)
            algorithm = Distill(trained, settings, self.teachers, off, on, self.seed)
        train = TrainConfig(
            output_dir=str(output), seed=self.seed, learning_rate=learning_rate, warmup_steps=3, resume="never",
            eval_every=max(5, steps // 4), max_tokens_per_micro_batch=8192,
        )  # fmt: skip
        found: list[dict[str, float]] = []
        clock = time.process_time()

        def evaluate() -> dict[str, float]:
            nonlocal clock
            meter.cpu_seconds += time.process_time() - clock
            spent = {"flops": meter.flops, "cpu_seconds": meter.cpu_seconds}
            found.append({"pass_rate": self.pass_rate(policy), **spent})
            meter.flops, clock = spent["flops"], time.process_time()
            return {"pass_rate": found[-1]["pass_rate"]}

        accelerator = make_accelerator(train)
        Trainer(accelerator, trained, self.tokenizer, algorithm, train, steps, Evaluation(evaluate)).train()
        return found

    def arm(self, name: str, folder: Path, rows_cost: dict[str, float], rates: dict[str, float]) -> list[dict]:
        """All parts of an arm one after the other, from the start; evaluations with what was spent until then."""
        policy, meter = self.load(), Meter()
        watched = [meter.watch(policy.model), meter.watch(self.teacher.policy.model)]
        if any(kind == "off-policy" for kind, _ in ARMS[name]):
            meter.flops, meter.cpu_seconds = rows_cost["flops"], rows_cost["cpu_seconds"]
        found: list[dict[str, float]] = []
        for number, (kind, steps) in enumerate(ARMS[name]):
            output = folder / f"{name.replace(' ', '_').replace(',', '')}-{number}"
            found += self.run(kind, steps, policy, output, meter, rates[kind])
        for handle in watched:
            handle.remove()
        return found


def run_seed(quickstart: Path, teacher: Path, rates: dict[str, float], folder: Path, seed: int) -> dict[str, Any]:
    """All arms of one seed: lists of evaluations."""
    start = make_start(quickstart, teacher, folder, seed)
    rows = folder.parent / ROWS
    cost = json.loads((folder.parent / f"{ROWS}.cost.json").read_text())
    bench = Bench(quickstart, teacher, start, rows, seed)
    result: dict[str, Any] = {"seed": seed, "rows": len(bench.rows), "rows_cost": cost, "arms": {}}
    result |= {"start": bench.pass_rate(bench.load()), "teacher": bench.pass_rate(bench.teacher.policy)}
    print(json.dumps(result), flush=True)
    for arm in ARMS:
        result["arms"][arm] = bench.arm(arm, folder, cost, rates)
        print(f"seed {seed}, {arm}: {[round(e['pass_rate'], 3) for e in result['arms'][arm]]}", flush=True)
    return result


# --- all of them ------------------------------------------------------------------------------------------------------


def reach(evaluations: Sequence[dict[str, float]], level: float, cost: str) -> float:
    """What was spent until the pass rate was at `level` for the first time; nan when it never was."""
    return next((e[cost] for e in evaluations if e["pass_rate"] >= level), float("nan"))


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Per arm, mean over seeds and half of its 95 % interval: pass rate at the end, compute in all, the share of seeds
    that reach what GRPO had at its end, and how many times less of GRPO's compute those took until then."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for arm in ARMS:
        own = [r["arms"][arm] for r in results]
        ends = [r["arms"]["GRPO"][-1] for r in results]
        columns = {
            "pass rate, %": [100 * e[-1]["pass_rate"] for e in own],
            "gain over the start, points": [
                100 * (e[-1]["pass_rate"] - r["start"]) for e, r in zip(own, results, strict=True)
            ],
            "over GRPO, points": [100 * (e[-1]["pass_rate"] - g["pass_rate"]) for e, g in zip(own, ends, strict=True)],
            "compute, TFLOP": [e[-1]["flops"] / 1e12 for e in own],
            "CPU seconds": [e[-1]["cpu_seconds"] for e in own],
        }
        table[arm] = {name: interval(values) for name, values in columns.items()}
        for cost, name in (("flops", "compute"), ("cpu_seconds", "CPU time")):
            ratios = [g[cost] / reach(e, g["pass_rate"], cost) for e, g in zip(own, ends, strict=True)]
            reached = [ratio for ratio in ratios if not math.isnan(ratio)]
            table[arm]["seeds that reach GRPO's end"] = len(reached), math.nan
            nothing = math.nan, math.nan
            table[arm][f"GRPO's {name} over theirs until then"] = interval(reached) if reached else nothing
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, required=True, help="the folder of a finished quickstart")
    parser.add_argument("--teacher", type=Path, required=True, help="a model over the quickstart's tokens")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--learning_rates", type=float, nargs=3, help=f"of {', '.join(LEARNING_RATES)}")
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    rates = dict(zip(LEARNING_RATES, options.learning_rates, strict=True)) if options.learning_rates else LEARNING_RATES
    if not (options.folder / f"{ROWS}.cost.json").is_file():
        options.folder.mkdir(parents=True, exist_ok=True)
        make_rows(options.quickstart, options.teacher, options.folder)
    one = functools.partial(run_seed, options.quickstart, options.teacher, rates)
    print_table(summarise(of_seeds("evidence_distill", options.folder, options.seeds, one)), digits=3)


if __name__ == "__main__":
    main()

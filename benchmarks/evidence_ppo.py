"""What value warm-up, truncated sampling, the pretraining term and Online Merging do to PPO, on the quickstart's task.

    python -m benchmarks.evidence_ppo --folder runs/evidence_ppo [--seeds 5] [--jobs 2] [--text TEXT.jsonl.gz]

The start is one model: the quickstart's SFT model, trained further on demonstrations and, beside them, plain text that
PPO then never sees (GSM8K questions and solutions; the demonstrations' words when no --text is given). Every arm trains
it with several seeds. Held-out pass rate and held-out loss on the text are taken every twenty steps; runs that are
done are not done again.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence import print_table, write_results
from benchmarks.rows import write_rows
from benchmarks.sides import ROOT
from benchmarks.statistics import interval

ARMS: dict[str, dict[str, Any]] = {
    "PPO": {},
    "no value warm-up": {"value_warmup_steps": 0},
    "top-p 1.0": {"top_p": 1.0},
    "with ptx": {"ptx_coef": 0.2},
    "Online Merging": {"merge": "ondare", "merge_alpha": 2e-3, "merge_keep": 0.2},
}
STEPS, WARM_UP, EVAL_EVERY = 25, 15, 20
TEXTS, HELDOUT_TEXTS, PROBLEMS = 1500, 100, 200


# --- the start --------------------------------------------------------------------------------------------------------


def make_start(folder: Path, text: Path | None) -> None:
    """Problems, texts, a random base model and the model fine-tuned on both."""
    import recipes.sft
    from recipes.quickstart.run import prepare

    if (folder / "sft" / "model" / "config.json").is_file():
        return
    prepare(folder, seed=0)
    rows = [json.loads(line) for line in (folder / "data" / "sft.jsonl").read_text().splitlines()]
    texts = _texts(text) if text else [row["messages"][-1]["content"] for row in rows]
    part = [{"text": t} for t in texts[: TEXTS + HELDOUT_TEXTS]]
    for name, lines in (
        ("mixed", [{"messages": r["messages"]} for r in rows[:3000]] + part[:TEXTS]),
        ("text", part[:TEXTS]),
        ("heldout_text", part[TEXTS:]),
    ):
        write_rows(folder / "data" / f"{name}.jsonl", lines)
    yaml = ["--config", str(ROOT / "recipes/quickstart/sft.yaml")]
    data = ["--dataset", str(folder / "data" / "sft.jsonl"), "--output_dir", str(folder / "task")]
    recipes.sft.main([*yaml, "--model_name_or_path", str(folder / "base"), *data])
    more = ["--max_length", "512", "--overflow", "truncate", "--epochs", "2", "--learning_rate", "1e-3"]
    data = ["--dataset", str(folder / "data" / "mixed.jsonl"), "--output_dir", str(folder / "sft")]
    recipes.sft.main([*yaml, *more, "--model_name_or_path", str(folder / "task" / "model"), *data])


def _texts(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    return [f"{row['question']}\n{row['answer']}" for row in rows]


# --- one run ----------------------------------------------------------------------------------------------------------


def run_arm(folder: Path, arm: str, seed: int, output: Path) -> None:
    """Train and write result.json: the evaluations, and what the training steps said."""
    from alignment.accelerator import make_accelerator
    from alignment.algorithms.ppo import Ppo, PpoConfig
    from alignment.algorithms.sft import heldout_loss
    from alignment.chat.template import stop_token_ids
    from alignment.config import TrainConfig
    from alignment.metrics import replace_file
    from alignment.optim.online_merging import OnlineMergingConfig, make_merging_optimizer
    from alignment.rollout import TransformersEngine
    from alignment.trainer import Evaluation, Trainer
    from alignment.types import Sampling
    from recipes.common import sample_pass_rate
    from rewards import RewardRunner, get_reward

    settings = dict(ARMS[arm])
    merging = {name: settings.pop(name) for name in list(settings) if name.startswith("merge")}
    top_p = settings.pop("top_p", 0.9)
    ppo = PpoConfig(**{**_defaults(), **settings})
    train = TrainConfig(
        output_dir=str(output), seed=seed, learning_rate=2e-4, eval_every=EVAL_EVERY, save_every=0, resume="never"
    )
    accelerator = make_accelerator(train, some_parameters_rest=True)
    model, reference, tokenizer = _models(folder)
    rows = _rows(folder, tokenizer)
    engine = TransformersEngine(model.policy.model, tokenizer, max_rows=256)
    sampling = Sampling(max_tokens=96, top_p=top_p, seed=seed, stop_token_ids=tuple(stop_token_ids(tokenizer)))
    score = RewardRunner([("verifier:math", get_reward("verifier:math"), 1.0)], timeout_s=30)

    def evaluate() -> dict[str, float]:
        plain = Sampling(max_tokens=96, seed=1000 + seed, stop_token_ids=sampling.stop_token_ids)
        rates = sample_pass_rate(engine, rows.heldout, 2, plain, score)
        loss = heldout_loss(model.policy, rows.heldout_texts, 4096)["loss"]
        return {"pass_rate": rates["pass_rate"], "text_loss": loss}

    base = {"merge_base_model": str(folder / "base")} if merging else {}
    optimizer = make_merging_optimizer(
        model, train, OnlineMergingConfig(**merging, **base), {"value": ppo.value_learning_rate}
    )
    most = train.max_tokens_per_micro_batch
    algorithm = Ppo(model, engine, rows.prompts, score, ppo, sampling, reference, rows.texts, most)
    start = evaluate()
    steps = ppo.value_warmup_steps + STEPS
    Trainer(accelerator, model, tokenizer, algorithm, train, steps, Evaluation(evaluate), optimizer).train()
    result = {"arm": arm, "seed": seed, **_result(output, ppo.value_warmup_steps, start)}
    replace_file(output / "result.json", json.dumps(result))


def _models(folder: Path) -> tuple[Any, Any, Any]:
    """Policy and value, the reference, and their tokenizer."""
    from trl import ModelConfig

    from alignment.models.actor_critic import ActorCritic
    from alignment.models.load import load_policy
    from alignment.models.load_scalar import scalar_from_policy

    policy, tokenizer = load_policy(ModelConfig(model_name_or_path=str(folder / "sft" / "model"), dtype="float32"))
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    return ActorCritic(policy, scalar_from_policy(policy, shared=False)), reference, tokenizer


@dataclass(frozen=True)
class Rows:
    """Prompts to train on and held out, plain texts to train on and held out."""

    prompts: list
    heldout: list
    texts: list
    heldout_texts: list


def _rows(folder: Path, tokenizer) -> Rows:
    from alignment.data.load import load_rows
    from alignment.data.prompts import build_prompts
    from alignment.data.sft_rows import encode_sft_rows

    data = folder / "data"
    return Rows(
        build_prompts(load_rows(str(data / "grpo.jsonl")), tokenizer, max_prompt_length=128),
        build_prompts(load_rows(str(data / "heldout.jsonl"))[:PROBLEMS], tokenizer, max_prompt_length=128),
        encode_sft_rows(load_rows(str(data / "text.jsonl")), tokenizer, 512)[0],
        encode_sft_rows(load_rows(str(data / "heldout_text.jsonl")), tokenizer, 512)[0],
    )


def _result(output: Path, warm_up: int, start: dict[str, float]) -> dict[str, Any]:
    """What the run's metrics say. start: the evaluation before the first step."""
    from alignment.metrics import read_metrics

    metrics = read_metrics(output / "metrics.jsonl", "train")[warm_up:]
    first, last = metrics[0], metrics[-5:]
    evaluations = [{"step": 0, **start}, *read_metrics(output / "metrics.jsonl", "eval")]
    names = ("reward", "entropy", "completion_length/mean", "clip_fraction/low", "clip_fraction/high", "kl")
    return {
        "evaluations": [{k: e[k] for k in ("step", "pass_rate", "text_loss")} for e in evaluations],
        "first_explained_variance": first["explained_variance"],
        "explained_variance": [m["explained_variance"] for m in metrics],
        "reward": [m["reward"] for m in metrics],
        "first_ratio": {k: first[k] for k in ("ratio/mean", "ratio/max")},
        "last": {name: sum(m[name] for m in last) / len(last) for name in names},
    }


def _defaults() -> dict[str, Any]:
    return {
        "prompts_per_step": 32,
        "group_size": 4,
        "mini_batches": 2,
        "value_warmup_steps": WARM_UP,
        "value_warmup_prompts": 128,
        "value_learning_rate": 5e-4,
        "kl_coef": 0.01,
    }


# --- all of them ------------------------------------------------------------------------------------------------------


def run_all(folder: Path, seeds: int, jobs: int) -> list[dict[str, Any]]:
    todo = [(arm, seed, folder / "runs" / f"{arm.replace(' ', '_')}-{seed}") for seed in range(seeds) for arm in ARMS]

    def one(item: tuple[str, int, Path]) -> dict[str, Any]:
        arm, seed, output = item
        if not (output / "result.json").is_file():
            command = [sys.executable, "-m", "benchmarks.evidence_ppo", "--folder", str(folder), "--arm", arm]
            command += ["--seed", str(seed), "--output", str(output)]
            output.mkdir(parents=True, exist_ok=True)
            with (output / "log.txt").open("w") as log:
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=environment, check=True)
            print(f"{arm}, seed {seed}: done", flush=True)
        return json.loads((output / "result.json").read_text())

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, todo))


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Per arm: mean over seeds and half of its 95 % interval."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for arm in ARMS:
        own = [r for r in results if r["arm"] == arm]
        ends = [r["evaluations"][-1] for r in own]
        starts = [r["evaluations"][0] for r in own]
        columns = {
            "first explained variance": [r["first_explained_variance"] for r in own],
            "explained variance, 10 steps": [sum(r["explained_variance"][:10]) / 10 for r in own],
            "reward, first 10 steps": [sum(r["reward"][:10]) / 10 for r in own],
            "reward, last 5 steps": [r["last"]["reward"] for r in own],
            "held-out pass rate": [e["pass_rate"] for e in ends],
            "text loss, rise": [e["text_loss"] - s["text_loss"] for e, s in zip(ends, starts, strict=True)],
            "entropy": [r["last"]["entropy"] for r in own],
            "first ratio, mean": [r["first_ratio"]["ratio/mean"] for r in own],
            "first ratio, max": [r["first_ratio"]["ratio/max"] for r in own],
            "kl": [r["last"]["kl"] for r in own],
        }
        table[arm] = {name: interval(values) for name, values in columns.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--text", type=Path, help="GSM8K rows (.jsonl.gz) as the plain text")
    parser.add_argument("--arm", choices=list(ARMS), help="this run only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.arm:
        run_arm(options.folder, options.arm, options.seed, options.output)
        return
    make_start(options.folder, options.text)
    results = run_all(options.folder, options.seeds, options.jobs)
    write_results("evidence_ppo", results)
    print_table(summarise(results), digits=4)


if __name__ == "__main__":
    main()

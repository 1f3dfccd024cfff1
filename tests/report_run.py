"""A synthetic run directory for the report's tests: two stages with realistic, hostile and damaged content."""

import json
import math
import random
from pathlib import Path

from alignment.metrics import RunLog

HOSTILE = '</script><img src="x" onerror="document.title=\'owned\'"><script>document.title="owned"</script>'

SUMMARY = {
    "stages": [
        {
            "name": "base",
            "pass_rate": 0.004,
            "ci_low": 0.0,
            "ci_high": 0.011,
            "problems": 256,
            "samples": 1024,
            "seconds": 9.1,
        },
        {
            "name": "sft",
            "pass_rate": 0.412,
            "ci_low": 0.371,
            "ci_high": 0.453,
            "problems": 256,
            "samples": 1024,
            "seconds": 118.0,
        },
        {
            "name": "grpo",
            "pass_rate": 0.687,
            "ci_low": 0.648,
            "ci_high": 0.726,
            "problems": 256,
            "samples": 1024,
            "seconds": 321.7,
        },
    ],
    "seed": 0,
    "gain": {"points": 27.5, "ci_low": 22.1, "ci_high": 32.9},
}


def write_run(run_dir: Path, steps: int = 120) -> None:
    """Writes `run_dir/sft`, `run_dir/grpo` and summary.json."""
    random.seed(0)
    noise = lambda size: random.gauss(0.0, size)
    write_sft(run_dir / "sft", steps, noise)
    write_grpo(run_dir / "grpo", steps, noise)
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    settings = {"model": {"name": "qwen3-tiny", "hub_token": "hf_private"}, "beta": 0.04, "rewards": ["math", "format"]}
    (run_dir / "grpo" / "config.json").write_text(json.dumps(settings))


def write_sft(run_dir: Path, steps: int, noise) -> None:
    with RunLog(run_dir, steps, console=False) as log:
        for step in range(1, steps + 1):
            progress = step / steps
            loss = 0.35 + 2.6 * math.exp(-6 * progress) + noise(0.05)
            rate = 2e-3 * min(1.0, 10 * progress) * (0.55 + 0.45 * math.cos(math.pi * progress))
            norm = 40.0 if step == steps // 3 else 0.8 + abs(noise(0.2))
            log.train(step, {"loss": loss, "learning_rate": rate, "grad_norm": norm}, tokens=8000 + int(noise(300)))
            if step % (steps // 6) == 0:
                log.eval(step, {"eval_loss": loss + 0.08, "pass_rate": 0.4 * progress})


def write_grpo(run_dir: Path, steps: int, noise) -> None:
    with RunLog(run_dir, steps, console=False) as log:
        for step in range(1, steps + 1):
            log.train(step, grpo_metrics(step, steps, noise), tokens=30_000 + int(noise(4000)))
            if step % (steps // 6) == 0 or step == 1:
                log.eval(step, {"pass_rate": 0.41 + 0.27 * step / steps})
            if step % 10 == 0:
                log.samples(step, [sample(step, index) for index in range(8)])


def grpo_metrics(step: int, steps: int, noise) -> dict[str, float]:
    progress = step / steps
    metrics = {
        "reward/mean": 0.5 + 0.6 * progress + noise(0.06),
        "reward/std": 0.4 - 0.15 * progress + abs(noise(0.03)),
        "reward/math": 0.4 + 0.3 * progress + noise(0.05),
        "reward/format": 0.2,
        "reward/unscored": 0.0,
        "pass_rate": 0.4 + 0.3 * progress + noise(0.05),
        "loss": noise(0.01),
        "entropy": 0.9 - 0.5 * progress + noise(0.03),
        "kl": 0.08 * progress + abs(noise(0.004)),
        "completion_length/mean": 90 + 40 * progress + noise(4),
        "completion_length/max": 240.0 + noise(10),
        "completion_length/min": 20.0 + abs(noise(6)),
        "ratio/mean": 1.0 + noise(0.003),
        "ratio/min": 0.7 + noise(0.05),
        "ratio/max": 1.8 + abs(noise(0.4)),
        "ratio/effective_sample_size": 400 + noise(10),
        "clip_fraction/low": 0.004 + abs(noise(0.002)),
        "clip_fraction/high": 0.009 + abs(noise(0.003)),
        "learning_rate": 3e-5 * min(1.0, 12 * progress),
        "grad_norm": 0.5 + abs(noise(0.1)),
        "groups/zero_variance": 4 + 10 * progress + noise(1),
        "seconds/rollout": 1.6 + noise(0.1),
        "seconds/train": 0.9 + noise(0.05),
    }
    if step in (7, 8):
        metrics["kl"] = math.nan
    if step < 5:
        del metrics["entropy"]
    return metrics


def sample(step: int, index: int) -> dict:
    answer, reward = 17 * index + 5, [1.2, 0.2, 0.0, None][index % 4]
    thought = "\n".join(f"Step {n}: {17 * n} + 5 = {17 * n + 5} ✓ 正しい" for n in range(2 + 9 * (index % 3)))
    text = f"<think>\n{thought}\n</think>\nThe answer is \\boxed{{{answer}}}."
    terms = {"math": None if reward is None else float(reward > 1), "format": 0.2}
    return {
        "prompt": f"What is 17 × {index} + 5? Naïve café, 東京 & <b>bold</b>",
        "completion": HOSTILE if index == 5 else text,
        "reward": math.nan if index == 7 else reward,
        "reward_terms": terms,
        "finish_reason": "length" if index % 3 == 2 else "stop",
        "verdict": "pass" if reward and reward > 1 else "fail",
        "answer": str(answer),
    }

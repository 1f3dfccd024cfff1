"""Rollouts, ours beside transformers' `model.generate` as TRL's GRPOTrainer drives it on a CPU: every prompt repeated
for its samples, left-padded, a cache that grows, all rows until the last one has ended.

Both sides first decode a few prompts greedily, and the tokens must agree. Lengths are forced to the same values on both
sides: `full`, every completion has `new_tokens`; `mixed`, log-normal with a mean of about 0.4 x `new_tokens`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.sides import Gate, Side, compare, serve
from benchmarks.workload import PAD, make_model, make_tokenizer, prompts

MODULE = "benchmarks.bench_rollout"
GREEDY_TOKENS = 12
GREEDY_PROMPTS = 4
SHAPE = {"prompts": 8, "group_size": 8, "prompt_tokens": 128, "new_tokens": 64}

# name, model, lengths, shape
CASES: list[tuple[str, str, str, dict[str, int]]] = [
    ("tiny full", "tiny", "full", SHAPE),
    ("tiny mixed", "tiny", "mixed", {**SHAPE, "new_tokens": 128}),
    ("small mixed, 4 prompts", "small", "mixed", {**SHAPE, "prompts": 4}),
]


def questions(shape: dict[str, int]) -> list[list[int]]:
    """Prompts of `prompt_tokens`, or of lengths spread evenly from `shortest_prompt` to it."""
    longest = shape["prompt_tokens"]
    lengths = np.linspace(shape.get("shortest_prompt", longest), longest, shape["prompts"]).astype(int)
    return [ids[:length] for ids, length in zip(prompts(shape["prompts"], longest), lengths, strict=True)]


def completion_lengths(spec: dict[str, Any]) -> np.ndarray:
    """Forced number of tokens of every sample, [prompts, group_size]."""
    shape = spec["shape"]
    size, longest = (shape["prompts"], shape["group_size"]), shape["new_tokens"]
    if spec["lengths"] == "full":
        return np.full(size, longest)
    lengths = np.exp(np.random.default_rng(3).normal(np.log(0.33 * longest), 0.6, size))
    return lengths.clip(2, longest).astype(int)


def checksum(completions: list[list[int]]) -> int:
    """Small enough to be exact as a float; any other token or order gives another one."""
    value = 1
    for token in (t for ids in completions for t in ids):
        value = (value * 1_000_003 + token) % (2**31 - 1)
    return value


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.rollout import TransformersEngine
    from alignment.types import Prompt, Sampling

    shape, lengths = spec["shape"], completion_lengths(spec)

    class Forced(TransformersEngine):
        """Ends every sample at its length."""

        def _draw(self, rows, logits, sampling):
            super()._draw(rows, logits, sampling)
            for row in rows:
                if len(row.token_ids) == lengths[int(row.prompt.id), row.index]:
                    row.finish_reason = "stop"

    given = [Prompt(str(i), [], ids) for i, ids in enumerate(questions(shape))]
    model, tokenizer = make_model(spec["model"]), make_tokenizer()
    plain = TransformersEngine(model, tokenizer, max_rows=GREEDY_PROMPTS)
    greedy = Sampling(max_tokens=GREEDY_TOKENS, temperature=0.0)
    first = checksum([g[0].token_ids for g in plain.generate(given[:GREEDY_PROMPTS], 1, greedy)])
    engine = Forced(model, tokenizer, max_rows=lengths.size)
    gate.ready()
    step = 0
    while True:
        groups = engine.generate(given, shape["group_size"], Sampling(max_tokens=shape["new_tokens"]), step)
        step += 1
        gate.step(greedy=first, tokens=sum(len(r.token_ids) for g in groups for r in g))


def run_generate(spec: dict[str, Any], gate: Gate) -> None:
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    shape, lengths = spec["shape"], torch.from_numpy(completion_lengths(spec).reshape(-1))

    class Forced(StoppingCriteria):
        """Ends every row at its length; `generate` goes on until all have ended."""

        def __call__(self, input_ids, scores, **kwargs):
            return input_ids.shape[1] - shape["prompt_tokens"] >= lengths

    model = make_model(spec["model"]).eval()
    longest = shape["prompt_tokens"]
    ids = torch.tensor([[PAD] * (longest - len(q)) + q for q in questions(shape)])
    seen = torch.tensor([[0] * (longest - len(q)) + [1] * len(q) for q in questions(shape)])
    shared = {"pad_token_id": PAD, "eos_token_id": None}
    greedy = GenerationConfig(do_sample=False, max_new_tokens=GREEDY_TOKENS, **shared)
    sampled = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=shape["new_tokens"], **shared)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        few = slice(0, GREEDY_PROMPTS)
        out = model.generate(ids[few], attention_mask=seen[few], generation_config=greedy)
        first = checksum(out[:, longest:].tolist())
        ids, seen = (x.repeat_interleave(shape["group_size"], 0) for x in (ids, seen))
        criteria = StoppingCriteriaList([Forced()])
        gate.ready()
        while True:
            out = model.generate(ids, attention_mask=seen, generation_config=sampled, stopping_criteria=criteria)
            assert out.shape[1] - longest == int(lengths.max())
            gate.step(greedy=first, tokens=int(lengths.sum()))


def run_case(case: tuple[str, str, str, dict[str, int]], threads: int) -> dict[str, Any]:
    """Both sides in turn. `ratio`, `cpu_ratio`: how many times longer generate takes, in wall and CPU time."""
    name, model, lengths, shape = case
    spec = {"model": model, "lengths": lengths, "shape": shape}
    sides = [Side(way, MODULE, {**spec, "way": way}, threads) for way in ("ours", "generate")]
    results = compare(sides, {"greedy": (0.0, 0.0), "tokens": (0.0, 0.0)}, warm=1)
    tokens = sides[0].steps[0]["tokens"]
    for result in results.values():
        result["tokens_per_second"] = tokens / result["seconds"]
    wall, cpu = (results["generate"][key] / results["ours"][key] for key in ("seconds", "cpu_seconds"))
    row = {"name": name, "tokens": tokens, "ratio": wall, "cpu_ratio": cpu, "sides": results}
    speeds = ", ".join(
        f"{way} {r['tokens_per_second']:.0f} tokens/s, {r['cpu_seconds']:.2f} CPU s, peak {r['peak_mb']:.0f} MB"
        for way, r in results.items()
    )
    load = max(r["other_load"] for r in results.values())
    print(f"  {name}: {wall:.2f}x (CPU time {cpu:.2f}x); {speeds}; other load {load:.0%}", flush=True)
    return row


if __name__ == "__main__":
    serve(run_ours, run_generate)

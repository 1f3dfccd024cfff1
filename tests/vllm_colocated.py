"""python tests/vllm_colocated.py MODEL FOLDER: vLLM in the trainer's own process, in an environment that has both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import recipes.engines
import recipes.grpo
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.rollout import TransformersEngine
from recipes.engines import EngineConfig, make_plain_engine
from tests.test_vllm import GREEDY, assert_same, prompts, shifted


def main(model_path: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    engine = make_plain_engine(EngineConfig("vllm", vllm_memory=0.25), model, tokenizer, 16, str(folder / "x"))
    embedded = TransformersEngine(model, tokenizer)
    embedded.longest = engine.longest
    for step in (1, 2):
        assert_same(engine.generate(prompts(), 2, GREEDY), embedded.generate(prompts(), 2, GREEDY))
        engine.load_weights(Policy(shifted(model, step)), step)
    assert_same(engine.generate(prompts(), 2, GREEDY), embedded.generate(prompts(), 2, GREEDY))
    recipes.engines.LocalBackend = lambda *settings: engine.backend  # a process has room for one vLLM
    rows = [{"prompt": f"What is {a} + {a}?"} for a in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipes.grpo.main(
        [
            *("--model_name_or_path", model_path, "--dataset", str(folder / "rows.jsonl"), "--engine", "vllm"),
            *("--vllm_memory", "0.25", "--rewards", "tests.test_vllm_recipes:vowels", "--curriculum", "random"),
            *("--prompts_per_step", "4", "--group_size", "4", "--max_tokens", "16", "--max_steps", "2"),
            *("--output_dir", str(folder / "run")),
        ]
    )
    lines = read_metrics(folder / "run" / "metrics.jsonl", "train")
    outside = [line["sampler_ratio/outside"] for line in lines]
    print(json.dumps({"same": True, "steps": len(lines), "outside": outside}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

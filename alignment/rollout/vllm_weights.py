"""The policy's weights for vLLM: written to a folder that the servers can read, or sent over NCCL; and what they prove.

Full weights go as a plain checkpoint, so that every architecture has the names that vLLM loads. It is complete before
it gets its name, and the one before it is removed when the next is there. Adapters (LoRA) go as PEFT saves them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from alignment.chat.tokens import tokenize_text
from alignment.checkpoint import writing_problem
from alignment.errors import EngineLost
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.rollout.vllm_sample import Request
from alignment.types import Segment, Tree

ADAPTER = "policy"
"""The name under which a server knows the adapter."""
PROBE_TOKENS = 192
PROBE_PLACES = 12
TOLERANCES = {"float32": 2e-3}
LOW_PRECISION = 0.1
PROBE = (
    "A train leaves the station at 9:40 and travels 186 km in 2 hours and 35 minutes. How fast is it, on average?\n"
    "2 hours and 35 minutes are 155 minutes, that is 155 / 60 = 2.5833 hours. The speed is 186 / 2.5833 = 72 km/h.\n"
    'def mean(values):\n    return sum(values) / len(values)\n\nThe letters of the word "reading" are r, e, a, d, i, n '
    "and g. In the evening the two of them walked along the river, and neither of them said a word until the bridge. "
)


class WeightFolder:
    """Checkpoints by version under `folder`; the newest only. adapters: LoRA, so nothing else is written."""

    def __init__(self, folder: Path, adapters: bool):
        self.folder, self.adapters = folder, adapters

    def write(self, model: Any, version: str) -> None:
        """Raises EngineLost when the folder is full or not writable."""
        path, aside = self.folder / version, self.folder / f".writing-{version}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            model.save_pretrained(str(aside), max_shard_size="1TB")
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)
            for old in self.folder.iterdir():
                if old != path:
                    shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            raise EngineLost(
                f"vllm_weights_dir: the weights could not be written to {self.folder}: "
                f"{writing_problem(error, self.folder)}. Free space there, twice that of the weights, or name another "
                "folder that the servers can read"
            ) from error

    def path(self, version: str) -> Path:
        return self.folder / version if self.adapters else self.folder / version / "model.safetensors"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Probe:
    """A text whose log-probabilities under the policy are known, to prove that vLLM has the same weights.

    It is longer than a block of the prefix cache. vLLM is asked for the next token's log-probability behind beginnings
    of it, as in sampling: log-probabilities of prompts take another way, which adapters can break (0.32 on a CPU).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int, dtype: str, tolerance: float = 0.0):
        """dtype: that of the weights in vLLM. tolerance: mean difference in nats; 0 = what the type allows."""
        ids = tokenize_text(tokenizer, PROBE)
        self.token_ids = ids[: min(PROBE_TOKENS, longest - 1)]
        self.places = np.unique(np.linspace(1, len(self.token_ids) - 1, PROBE_PLACES).astype(int)).tolist()
        self.tolerance = tolerance or TOLERANCES.get(dtype.removeprefix("torch."), LOW_PRECISION)
        self.expected = np.zeros(0, dtype=np.float32)

    def measure(self, policy: Policy, max_tokens: int = 16384) -> None:
        """Take the policy's log-probabilities at the places."""
        scored = np.ones(len(self.token_ids), dtype=bool)
        scored[0] = False
        tree = Tree([Segment(self.token_ids, scored=scored)])
        modes = {module: module.training for module in policy.modules()}
        policy.eval()
        wrapped = policy.__dict__.pop("forward", None)  # accelerate's, which computes in bfloat16 under `bf16`
        try:
            with torch.autocast(policy.device.type, enabled=False):
                add_logprobs(policy, [tree], "probe", max_tokens)
        finally:
            if wrapped is not None:
                policy.__dict__["forward"] = wrapped
        for module, training in modes.items():
            module.training = training
        self.expected = tree.segments[0].columns["probe"][self.places]

    def requests(self) -> list[Request]:
        """One per place. As many tokens are shown as ids are asked for, the drawn one among them: hence a second id."""
        out = []
        for place in self.places:
            wanted = [self.token_ids[place], next(i for i in self.token_ids if i != self.token_ids[place])]
            params = {"max_tokens": 1, "temperature": 1.0, "seed": 0, "logprobs": 2, "logprob_token_ids": wanted}
            out.append(Request(self.token_ids[:place], params))
        return out

    def check(self, where: str, found: Sequence[float]) -> float:
        """The mean difference of vLLM's log-probabilities at the places. Raises EngineLost when they are not the
        policy's."""
        difference = np.abs(np.asarray(found) - self.expected)
        mean, worst = float(difference.mean()), float(difference.max())
        if mean <= self.tolerance and worst <= 10 * self.tolerance:
            return mean
        raise EngineLost(
            f"{where} does not have the policy's weights: on the probe text its log-probabilities differ by {mean:.2g} "
            f"on average and {worst:.2g} at most (vllm_tolerance {self.tolerance:g}). It is stale or half loaded, or "
            "computes something else: check its model, its quantisation and its log, restart it and give the same "
            "command again"
        )

"""vLLM in this process, for one GPU (or CPU) that trains and samples by turns. Needs vLLM in this environment.

It is started from the policy's weights and told of new ones as a server is. On CPUs every rank has one of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed import barrier, rank, together, world_size
from alignment.errors import EngineLost, UserError
from alignment.models import Policy
from alignment.rollout import vllm_server
from alignment.rollout.vllm_engine import VllmInfo
from alignment.rollout.vllm_sample import Answer, Sample
from alignment.rollout.vllm_server.alignment_vllm_worker import WeightUpdates
from alignment.rollout.vllm_weights import Probe, WeightFolder

MOST_LOGPROBS = 1024


class LocalBackend:
    """memory: share of the GPU's memory that vLLM may take for weights and cache; on a CPU GiB of cache. rows:
    completions at a time.

    Raises UserError without vLLM, and for LoRA, whose adapters a server takes.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        memory: float,
        rows: int,
    ):
        if isinstance(model, PeftModel):
            raise UserError(
                "engine: vllm in this process takes no adapters; start a server and name it in vllm_servers"
            )
        if torch.cuda.is_available() and world_size() > 1:  # every rank's would take the first GPU
            raise UserError(
                "engine: vllm in this process serves one GPU; with several start servers and name them in vllm_servers"
            )
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"engine: vllm is not installed here ({error}): pip install vllm, or start servers and name them in "
                "vllm_servers (docs/vllm.md)"
            ) from error
        self.folder = WeightFolder(folder, adapters=False)
        dtype = str(model.dtype).removeprefix("torch.")
        room: dict[str, Any] = {"gpu_memory_utilization": memory}
        if not torch.cuda.is_available():
            room = {"kv_cache_memory_bytes": int(memory * 2**30), "enforce_eager": True}
        with _first_weights(model, tokenizer, folder.with_name(f"{folder.name}-start")) as start:
            self.llm = LLM(
                start,
                dtype=dtype,
                logprobs_mode="processed_logprobs",
                max_logprobs=MOST_LOGPROBS,
                generation_config="vllm",
                worker_extension_cls=f"{vllm_server.__name__}.alignment_vllm_worker.{WeightUpdates.__name__}",
                max_num_seqs=rows,
                **room,
            )
        self.info = VllmInfo(self.llm.llm_engine.model_config.max_model_len, MOST_LOGPROBS, dtype)
        self.version = ""

    def update(self, policy: Policy, version: str, probe: Probe) -> None:
        together(lambda: self.folder.write(policy.model, version) if rank() == 0 else None)
        together(lambda: self._load(version, probe))

    def _load(self, version: str, probe: Probe) -> None:
        self.version = ""
        self.llm.collective_rpc("load_weights_from", args=(str(self.folder.path(version)),))
        if not self.llm.reset_prefix_cache():
            raise EngineLost("vLLM's prefix cache could not be emptied")
        self._prove(probe)
        self.version = version

    def _prove(self, probe: Probe) -> None:
        requests = probe.requests()
        outputs = self._generate([r.token_ids for r in requests], [r.params for r in requests])
        wanted = [r.params["logprob_token_ids"][0] for r in requests]
        found = [o.outputs[0].logprobs[0][i].logprob for o, i in zip(outputs, wanted, strict=True)]
        probe.check("vLLM in this process", found)

    def finish(self, samples: Sequence[Sample], version: str) -> None:
        """In rounds: of every sample that is not finished its next request."""
        if version != self.version:
            raise EngineLost(f"vLLM in this process has the weights {self.version or 'of no version'}, not {version}")
        while open_samples := [sample for sample in samples if not sample.row.finish_reason]:
            requests = [sample.next_request() for sample in open_samples]
            outputs = self._generate([r.token_ids for r in requests], [r.params for r in requests])
            for sample, output in zip(open_samples, outputs, strict=True):
                sample.take(_answer(output.outputs[0]))

    def _generate(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        return self.llm.generate(inputs, [SamplingParams(**p) for p in params], use_tqdm=False)


@contextlib.contextmanager
def _first_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Iterator[str]:
    """A checkpoint that vLLM starts from. It is gone when every rank's has started or could not."""
    try:
        if rank() == 0:
            model.save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))
        barrier()
        try:
            yield str(folder)
        finally:
            barrier()
    finally:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _answer(output: Any) -> Answer:
    """The token's own entry comes first, whatever its rank."""
    ids, entries = list(output.token_ids), output.logprobs
    return Answer(
        ids,
        [at[i].logprob for i, at in zip(ids, entries, strict=True)],
        [[(i, found.logprob) for i, found in at.items()] for at in entries],
        output.sampling_mask.token_ids if output.sampling_mask is not None else None,
        output.finish_reason == "stop",
    )

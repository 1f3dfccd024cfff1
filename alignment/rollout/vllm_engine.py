"""Rollouts from vLLM: servers of its own, or one in this process, behind the protocol of the embedded engine.

Token ids go in and out, log-probabilities are those of the distribution really sampled from, every sample has a seed
of its own. After an update the new weights go to vLLM, its prefix cache is emptied, and the log-probabilities of a
probe text prove that it computes what the policy does. Unlike with the embedded engine, the same seed gives other
samples, and min_p is applied before top_k and top_p.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
import torch
from transformers import PreTrainedTokenizerBase

from alignment.distributed import gather_objects, rank, together
from alignment.errors import UserError
from alignment.models import Policy
from alignment.rollout.engine import longest_sequence
from alignment.rollout.thinking import ThinkingTokens
from alignment.rollout.vllm_nccl import NcclUpdates, nccl_updates
from alignment.rollout.vllm_sample import Request, Sample, make_samples
from alignment.rollout.vllm_servers import GENERATE, START, Server, ServerDown, Servers
from alignment.rollout.vllm_weights import ADAPTER, Probe, WeightFolder
from alignment.types import Prompt, Rollout, Sampling

INFO_S = 60.0  # a server looks its whole environment up before it describes itself
INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class VllmInfo:
    """longest: tokens it takes, prompt and completion together. most_logprobs: per token, -1 = all. dtype: of its
    weights. transfer: the backend of its own weight transfer, empty for none."""

    longest: int
    most_logprobs: int
    dtype: str
    transfer: str = ""


class Backend(Protocol):
    """vLLM as servers or in this process."""

    info: VllmInfo

    def update(self, policy: Policy, version: str, probe: Probe) -> None:
        """Give vLLM the policy's weights under the name `version`, and prove that it has them. Called on every rank.
        Raises EngineLost when it has not."""

    def finish(self, samples: Sequence[Sample], version: str) -> None:
        """Make the samples by weights of that name. Raises EngineLost when vLLM cannot."""


class VllmEngine:
    """Engine on vLLM. The weights are sent at once. tolerance: of the probe, see Probe.

    Rollout.token_ids end with the stop token, if one was drawn; Rollout.text leaves special tokens out.
    Raises UserError for a vLLM that does not serve training, and EngineLost when it does not have the weights.
    """

    remote = True
    """Sampling goes on while the policy changes."""

    def __init__(self, backend: Backend, policy: Policy, tokenizer: PreTrainedTokenizerBase, tolerance: float = 0.0):
        self.backend, self.tokenizer = backend, tokenizer
        self.longest = min(backend.info.longest, longest_sequence(policy.base.config))
        self.vocabulary = policy.base.config.get_text_config().vocab_size
        self.thinking = ThinkingTokens(tokenizer)
        self.probe = Probe(tokenizer, self.longest, backend.info.dtype, tolerance)
        (self.run,) = gather_objects([uuid.uuid4().hex[:12]])[:1]
        self.policy_step = 0
        self.version = ""
        self.load_weights(policy, 0)

    def load_weights(self, model: torch.nn.Module, step: int) -> None:
        """Take over the policy's weights; the coming rollouts are stamped with `step`. Called on every rank."""
        policy = model if isinstance(model, Policy) else Policy(model)  # type: ignore[arg-type]
        self.version, self.policy_step = f"{self.run}-{step}", step
        self.probe.measure(policy)
        self.backend.update(policy, self.version, self.probe)

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """n rollouts of every prompt, in the order of the prompts.

        Raises UserError as the embedded engine does, and for truncation that vLLM does not tell enough about;
        EngineLost when vLLM does not answer any more.
        """
        most = self.vocabulary if self.backend.info.most_logprobs < 0 else self.backend.info.most_logprobs
        groups = make_samples(prompts, n, sampling, step, self.thinking, self.longest, self.vocabulary, most)
        self.backend.finish([sample for samples in groups for sample in samples], self.version)
        return [[s.row.rollout(sampling, self.tokenizer, self.policy_step) for s in samples] for samples in groups]


class ServerBackend:
    """Servers that were started with rollout/vllm_server/serve.py. folder: where weights are written, to be read by the
    servers under the same path. adapters: the policy is trained by LoRA and only its adapters are sent."""

    def __init__(self, servers: Servers, folder: Path, adapters: bool):
        self.servers, self.adapters = servers, adapters
        self.folder = WeightFolder(folder, adapters)
        self.infos: dict[str, VllmInfo] = {}
        self.policy: Policy | None = None
        self.version = ""
        self.probe: Probe | None = None
        self.mismatch: dict[str, float] = {}
        servers.refresh_all(self._inspect)
        infos = list(self.infos.values())
        most = min((info.most_logprobs for info in infos if info.most_logprobs >= 0), default=-1)
        transfers = {info.transfer for info in infos}
        transfer = transfers.pop() if len(transfers) == 1 else ""
        self.info = VllmInfo(min(info.longest for info in infos), most, infos[0].dtype, transfer)
        self.nccl: NcclUpdates | None = None

    def update(self, policy: Policy, version: str, probe: Probe) -> None:
        self.policy, self.version, self.probe = policy, version, probe
        if rank() == 0:
            together(self._send_to_all)
        else:
            together(lambda: None)
        # the others find the weights in place and only convince themselves
        together(lambda: self.servers.refresh_all(self._refresh) if rank() else None)

    def finish(self, samples: Sequence[Sample], version: str) -> None:
        assert version == self.version
        self.servers.finish(samples, self._refresh, ADAPTER if self.adapters else None, version)

    # --- weights ----------------------------------------------------------------------------------------------------

    def _send_to_all(self) -> None:
        assert self.policy is not None
        if not (self.info.transfer == "nccl" and not self.adapters and self._send_by_nccl()):
            self.folder.write(self.policy.model, self.version)
        self.servers.refresh_all(self._refresh)

    def _send_by_nccl(self) -> bool:
        """One broadcast to all servers; what fails once is not tried again."""
        assert self.policy is not None
        try:
            self.nccl = self.nccl or nccl_updates(self.policy.base, [s.url for s in self.servers.servers])
            self.nccl.send(self.version)
        except (RuntimeError, ImportError, httpx2.HTTPError) as error:
            print(f"weights go through {self.folder.folder} from now on, NCCL failed: {error}", flush=True)
            self.info = VllmInfo(self.info.longest, self.info.most_logprobs, self.info.dtype)
            return False
        return True

    async def _refresh(self, client: httpx2.AsyncClient, server: Server) -> None:
        if server.url not in self.infos:
            await self._inspect(client, server)
        reply = await server.ask(client, "/weight_info")
        if reply.get("weight_version") != self.version:
            await server.ask(client, "/update_weight_version", {"new_version": INCOMPLETE})
            await self._send(client, server)
            await self._empty_cache(client, server)
            await server.ask(client, "/update_weight_version", {"new_version": self.version})
        await self._prove(client, server)

    async def _send(self, client: httpx2.AsyncClient, server: Server) -> None:
        path = self.folder.path(self.version)
        if not path.exists():  # they went by NCCL
            if rank() or threading.current_thread() is not threading.main_thread():
                raise ServerDown("it has no weights; the next update brings them")
            assert self.policy is not None
            self.folder.write(self.policy.model, self.version)
        if self.adapters:
            body: dict[str, Any] = {"lora_name": ADAPTER, "lora_path": str(path), "load_inplace": True}
            await self._load_adapter(client, server, body)
            return
        body = {"method": "load_weights_from", "kwargs": {"path": str(path)}}
        await server.ask(client, "/collective_rpc", body, self.servers.timeout_s)

    async def _load_adapter(self, client: httpx2.AsyncClient, server: Server, body: dict[str, Any]) -> None:
        try:
            await server.ask(client, "/v1/load_lora_adapter", body, self.servers.timeout_s)
        except ServerDown as error:
            if "status 404" in str(error) or "LoRA is not enabled" in str(error):
                raise UserError(
                    f"vLLM server {server.url} takes no adapters: start it with --enable-lora (and --max-lora-rank)"
                ) from error
            raise

    async def _empty_cache(self, client: httpx2.AsyncClient, server: Server) -> None:
        reply = await server.ask(client, "/reset_prefix_cache", {}, self.servers.timeout_s)
        if not reply.get("success"):
            raise ServerDown("its prefix cache could not be emptied, because others use it")

    async def _prove(self, client: httpx2.AsyncClient, server: Server) -> None:
        assert self.probe is not None
        model = ADAPTER if self.adapters else None

        async def ask(request: Request) -> float:
            body = {"token_ids": request.token_ids, "sampling_params": request.params, "model": model}
            reply = await server.ask(client, GENERATE, body, self.servers.timeout_s)
            top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            (wanted, _) = request.params["logprob_token_ids"]
            return next(entry["logprob"] for entry in top if entry["token_id"] == wanted)

        found = await asyncio.gather(*(ask(request) for request in self.probe.requests()))
        self.mismatch[server.url] = self.probe.check(f"vLLM server {server.url}", found)

    # --- what a server is -------------------------------------------------------------------------------------------

    async def _inspect(self, client: httpx2.AsyncClient, server: Server) -> None:
        """Raises UserError for a server that was not started for training."""
        models = await server.ask(client, "/v1/models")
        try:
            about = await server.ask(client, "/server_info?config_format=json", timeout_s=INFO_S)
            config = about["vllm_config"]
            model, transfer = config["model_config"], config.get("weight_transfer_config") or {}
            mode, worker = model["logprobs_mode"], config["parallel_config"]["worker_extension_cls"]
            info = VllmInfo(
                models["data"][0]["max_model_len"], model["max_logprobs"], model["dtype"], transfer.get("backend", "")
            )
        except (ServerDown, KeyError, IndexError, TypeError) as error:
            raise UserError(f"vLLM server {server.url} does not take weights ({error!r}): {START}") from error
        if mode != "processed_logprobs" or not worker:
            raise UserError(
                f"vLLM server {server.url} has --logprobs-mode {mode} and worker extension {worker or 'none'}: {START}"
            )
        self.infos[server.url] = info

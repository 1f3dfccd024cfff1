"""Weight updates over NCCL, by vLLM's own weight transfer: one broadcast from rank 0 to the workers of all servers.

It needs CUDA, vLLM in this environment too, and servers started with `--weight-transfer-config '{"backend": "nccl"}'`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
from transformers import PreTrainedModel

LONG_S = 600.0


class _AllServers:
    """vLLM's VLLMWeightSyncClient for several servers at once: each gets its own place among the ranks."""

    def __init__(self, urls: Sequence[str], workers: Sequence[int]):
        self.urls, self.workers = urls, workers

    def _all(self, path: str, body_of: Callable[[int], dict[str, Any]]) -> None:
        def post(i: int) -> None:
            httpx2.post(f"{self.urls[i]}{path}", json=body_of(i), timeout=LONG_S, trust_env=False).raise_for_status()

        with ThreadPoolExecutor(len(self.urls)) as pool:
            list(pool.map(post, range(len(self.urls))))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = [init_info["rank_offset"] + sum(self.workers[:i]) for i in range(len(self.urls))]
        self._all("/init_weight_transfer_engine", lambda i: {"init_info": {**init_info, "rank_offset": offsets[i]}})

    def start_weight_update(self) -> None:
        self._all("/start_weight_update", lambda i: {})

    def update_weights(self, update_info: Any) -> None:
        self._all("/update_weights", lambda i: {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("/finish_weight_update", lambda i: {"weight_version": weight_version} if weight_version else {})


class NcclUpdates:
    """engine: vLLM's trainer-side transfer, its communicator open."""

    def __init__(self, engine: Any, servers: _AllServers):
        self.engine, self.servers = engine, servers

    def send(self, version: str) -> None:
        """All weights, and only then their name."""
        self.servers._all("/update_weight_version", lambda i: {"new_version": "incomplete"})
        self.engine.send_weights()
        self.servers._all("/reset_prefix_cache", lambda i: {})
        self.servers._all("/update_weight_version", lambda i: {"new_version": version})


def nccl_updates(model: PreTrainedModel, urls: Sequence[str]) -> NcclUpdates:
    """Raises ImportError without vLLM, and RuntimeError where NCCL is not to be had."""
    from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    workers = [
        int(
            httpx2.get(f"{url}/get_world_size", timeout=LONG_S, trust_env=False).raise_for_status().json()["world_size"]
        )
        for url in urls
    ]
    servers = _AllServers(urls, workers)
    info = NCCLTrainerInitInfo(
        rank=0, master_address=_own_address(urls[0]), master_port=_free_port(), world_size=1 + sum(workers)
    )
    engine = WeightTransferTrainerFactory.trainer_init(info, client=servers, source=ModuleSource(model))
    return NcclUpdates(engine, servers)


def _own_address(url: str) -> str:
    """The address of this machine on the way to a server."""
    where = httpx2.URL(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((where.host, where.port or 80))  # sends nothing
        return probe.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

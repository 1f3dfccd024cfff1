"""The engine that a recipe samples with: the policy in training itself, or vLLM."""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config import check_values
from alignment.distributed import rank
from alignment.errors import UserError
from alignment.models import Policy
from alignment.rollout import TransformersEngine
from alignment.rollout.vllm_engine import ServerBackend, VllmEngine
from alignment.rollout.vllm_local import LocalBackend
from alignment.rollout.vllm_servers import Servers
from alignment.types import Engine

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass
class EngineConfig:
    """Settings of the recipes that sample: by what. docs/vllm.md"""

    engine: Literal["transformers", "vllm"] = field(
        default="transformers", metadata={"help": "transformers: the policy itself; vllm: servers, or in this process."}
    )
    vllm_servers: list[str] = field(
        default_factory=list, metadata={"help": "Addresses, http://127.0.0.1:8001; none = vLLM in this process."}
    )
    vllm_weights_dir: str = field(default="", metadata={"help": "Where servers read new weights; default: see docs."})
    vllm_tolerance: float = field(default=0.0, metadata={"help": "Of the probe, nats per token; 0 = by the type."})
    vllm_timeout_s: float = field(default=1800.0, metadata={"help": "Most time of one request."})
    vllm_wait_s: float = field(default=600.0, metadata={"help": "Most time without any live server."})
    vllm_api_key_env: str = field(default="", metadata={"help": "Environment variable with the servers' key."})
    vllm_memory: float = field(
        default=0.3, metadata={"help": "In this process: share of the GPU's memory; on a CPU GiB of cache."}
    )

    def __post_init__(self):
        if self.engine == "transformers" and self.vllm_servers:
            raise UserError("vllm_servers are given, but engine is transformers: set engine: vllm")
        check_values(self, "above 0", "vllm_timeout_s", "vllm_wait_s", "vllm_memory")
        check_values(self, "0 or more", "vllm_tolerance")


class LongestEngine(Engine, Protocol):
    """longest: tokens that it takes, prompt and completion together."""

    longest: int


def make_plain_engine(
    config: EngineConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    folder: str,
) -> LongestEngine:
    """rows: completions at a time, of one server each. folder: of the run's outputs."""
    if config.engine == "transformers":
        return TransformersEngine(model, tokenizer, max_rows=rows)
    weights = weights_folder(config, folder)
    adapters = isinstance(model, PeftModel)
    backend: ServerBackend | LocalBackend
    if config.vllm_servers:
        servers = Servers(config.vllm_servers, config.vllm_api_key_env, config.vllm_timeout_s, config.vllm_wait_s, rows)
        backend = ServerBackend(servers, weights, adapters)
    else:
        backend = LocalBackend(model, tokenizer, weights, config.vllm_memory, rows)
    if rank() == 0:
        atexit.register(backend.folder.remove)
    return VllmEngine(backend, Policy(model), tokenizer, config.vllm_tolerance)


def weights_folder(config: EngineConfig, folder: str) -> Path:
    """A folder of this run's own, which is emptied and removed: in memory when every server is on this machine; else
    beside the outputs, where all of them must see it."""
    name = f"alignment-weights-{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:12]}"
    if config.vllm_weights_dir:
        return Path(config.vllm_weights_dir).resolve() / name
    if not are_local(config.vllm_servers):
        return Path(folder).resolve() / "vllm_weights"
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return place / name


def are_local(urls: Sequence[str]) -> bool:
    return all(urlsplit(url).hostname in LOCAL for url in urls)

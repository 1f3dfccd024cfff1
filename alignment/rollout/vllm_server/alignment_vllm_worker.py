"""Weight updates from a file, as methods of vLLM's workers (`--worker-extension-cls`). Imports nothing of ours.

Reloading goes layer by layer through vLLM's own reload, which packs every layer again as it was packed at the start. A
plain `model.load_weights` fails half-way where a layer was packed, and the server goes on answering.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open


class WeightUpdates:
    """Called by name, `collective_rpc("load_weights_from", …)`; arguments and results are what JSON can carry."""

    model_runner: Any  # the worker's

    def load_weights_from(self, path: str) -> dict[str, int]:
        """Take over all weights of a safetensors file with the names of a checkpoint."""
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            self.model_runner.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in names))
        self._repack_tied_heads()
        return {"tensors": len(names)}

    @torch.no_grad()
    def _repack_tied_heads(self) -> None:
        """A head that shares the embeddings' weight is no layer of its own to the reload, and would keep what it
        packed before."""
        model = self.model_runner.get_model()
        heads = [m for m in model.modules() if type(m).__name__ == "ParallelLMHead"]
        embeddings = {
            id(m.weight)
            for m in model.modules()
            if hasattr(m, "weight") and type(m).__name__ == "VocabParallelEmbedding"
        }
        for head in heads:
            if id(head.weight) in embeddings:
                head.quant_method.process_weights_after_loading(head)

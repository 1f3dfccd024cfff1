"""The load-balancing loss of mixture-of-experts models, over the whole batch of an optimizer step.

Shapes: L layers with experts, E experts, T tokens of one packed row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig

from alignment.distributed import all_sum


class RouterBalance:
    """Mean over layers of E * sum_i f_i P_i, with f_i the assignments to expert i per token and P_i its mean routing
    probability, both over all tokens of the batch, micro-batches and ranks included.

    Switch Transformer (arXiv 2101.03961, eq. 4-6); global-batch statistics as in arXiv 2501.11873 (Qwen3). With one
    layer and one micro-batch it is what transformers adds; transformers pools its layers, so that they may be
    unbalanced each as long as their sum is not.

    P_i is linear in the micro-batches while f_i has no gradient, so the assignments are counted first
    (`counting`, a pass without gradients, left out when there is only one micro-batch) and every micro-batch then adds
    its share.
    """

    def __init__(self, top_k: int, coefficient: float):
        self.top_k, self.coefficient = top_k, coefficient
        self._counting = False
        self._assigned_LE: torch.Tensor | None = None
        self._tokens = 0.0
        self._share: torch.Tensor | None = None

    def observe(self, router_logits: Sequence[torch.Tensor], empty: bool) -> None:
        """Called by the model in every forward pass, with one [T, E] per layer."""
        if self._counting:
            counts = 0.0 if empty else 1.0  # a rank with nothing but stand-ins adds zeros to the sum over ranks
            assigned = counts * torch.stack([self._assignments(layer) for layer in router_logits])
            self._assigned_LE = assigned if self._assigned_LE is None else self._assigned_LE + assigned
            self._tokens += counts * router_logits[0].shape[0]
        elif torch.is_grad_enabled() and not self._counting:
            self._share = self._loss(router_logits) * (0.0 if empty else 1.0)

    def take(self) -> torch.Tensor | None:
        """This micro-batch's share of the loss, coefficient included; None when no forward pass had gradients."""
        share, self._share = self._share, None
        return None if share is None else self.coefficient * share

    def forget(self) -> None:
        """Each micro-batch is a batch of its own from here on."""
        self._assigned_LE, self._tokens = None, 0.0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Forward passes in here count assignments; at the end they are summed over the ranks."""
        self.forget()
        self._counting = True
        try:
            yield
        finally:
            self._counting = False
        self._reduce()

    def _reduce(self) -> None:
        shape = (0, 0) if self._assigned_LE is None else tuple(self._assigned_LE.shape)
        device = torch.device("cpu") if self._assigned_LE is None else self._assigned_LE.device
        flat = [] if self._assigned_LE is None else self._assigned_LE.flatten().tolist()
        *flat, self._tokens = all_sum([*flat, self._tokens], device)
        self._assigned_LE = torch.tensor(flat, device=device).view(shape) if flat else None

    def _assignments(self, logits_TE: torch.Tensor) -> torch.Tensor:
        chosen = logits_TE.detach().float().topk(self.top_k, dim=-1).indices
        return torch.bincount(chosen.flatten(), minlength=logits_TE.shape[1]).float()

    def _loss(self, router_logits: Sequence[torch.Tensor]) -> torch.Tensor:
        probabilities_LE = torch.stack([layer.float().softmax(-1).sum(0) for layer in router_logits])
        assigned_LE, tokens = self._assigned_LE, self._tokens
        if assigned_LE is None:
            assigned_LE = torch.stack([self._assignments(layer) for layer in router_logits])
            tokens = router_logits[0].shape[0]
        layers, experts = probabilities_LE.shape
        return experts / layers * (assigned_LE / tokens * probabilities_LE / tokens).sum()


def router_balance(config: PreTrainedConfig) -> RouterBalance | None:
    """For a model with routed experts, with its own coefficient (`router_aux_loss_coef`); else None."""
    coefficient = getattr(config, "router_aux_loss_coef", None)
    return None if coefficient is None else RouterBalance(config.num_experts_per_tok, coefficient)


def balances(model: nn.Module) -> list[RouterBalance]:
    """The load-balancing losses of all mixture-of-experts models in `model`."""
    found = (getattr(module, "balance", None) for module in model.modules())
    return [balance for balance in found if isinstance(balance, RouterBalance)]

"""The Online Merging Optimizer (arXiv 2405.17931): AdamW whose steps are sparsified and merged with the direction that
SFT took, tau = theta_SFT - theta_base, against the alignment tax.

Delta = -lr * m_hat / (sqrt(v_hat) + eps), alpha the weight of tau, F a sparsifier that keeps a share p of the entries:

  OnDARE  theta <- theta + (1 - alpha) F(Delta) + alpha F(tau), F random, drawn anew for each term and merge
  OnTIES  F keeps the entries largest in magnitude, per tensor; a = (1 - alpha) F(Delta) and b = alpha F(tau) are added
          where their signs agree, else the larger in magnitude stands
  Step-K  K - 1 plain AdamW steps, then their sum Delta_c is undone and Delta_c + Delta is merged

Decoupled weight decay is no part of Delta: as in AdamW, every step applies it, whole, before the update.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from alignment.config import TrainConfig, check_values
from alignment.distributed import rank
from alignment.errors import UserError
from alignment.models.trunk import base_of
from alignment.optim.adamw import make_optimizer, parameter_groups
from alignment.optim.merge import Update, largest_entries, merge_largest, merge_random, merge_whole, random_entries
from alignment.optim.task_vector import (
    fingerprint,
    is_sharded,
    load_base_weights,
    local,
    shard_like,
    shard_number,
    task_vector,
)
from alignment.optim.zero import gather, is_partitioned, pieces_of

ONTIES_SHARDED = (
    "merge: onties ranks the entries of whole tensors, and here they are sharded (FSDP2, ZeRO): use merge: ondare, or "
    "train with whole parameters on every rank (DDP)"
)


@dataclass
class OnlineMergingConfig:
    """How a preference method's steps are merged with SFT's direction."""

    merge: Literal["none", "ondare", "onties"] = field(
        default="none", metadata={"help": "Online merging: ondare keeps random entries, onties the largest."}
    )
    merge_base_model: str = field(
        default="", metadata={"help": "Pretrained model that the policy was fine-tuned from; hub name or folder."}
    )
    merge_alpha: float = field(default=1e-7, metadata={"help": "Weight of SFT - base in a merge; 0 = no pull."})
    merge_keep: float = field(default=0.01, metadata={"help": "Share of entries that a merge keeps, p."})
    merge_every: int = field(default=1, metadata={"help": "Merge in every K-th step, plain AdamW in between."})
    merge_rescale: Literal["unbiased", "none"] = field(
        default="unbiased",
        metadata={"help": "unbiased: ondare divides what it keeps by p, so that the mean step is AdamW's."},
    )
    merge_dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Type that SFT - base is kept in."}
    )
    merge_device: Literal["model", "cpu"] = field(
        default="model", metadata={"help": "Where SFT - base is kept; cpu copies the kept entries at each merge."}
    )

    def __post_init__(self):
        if not 0 <= self.merge_alpha < 1:
            raise UserError(f"merge_alpha: {self.merge_alpha} is not valid, it has to be in [0, 1)")
        check_values(self, "above 0, at most 1", "merge_keep")
        check_values(self, "1 or more", "merge_every")
        if self.merge != "none" and self.merge_alpha and not self.merge_base_model:
            raise UserError(
                "merge_base_model is missing: the pretrained model that the policy was fine-tuned from "
                "(merge_alpha: 0 does without)"
            )


def make_merging_optimizer(
    model: nn.Module,
    config: TrainConfig,
    merging: OnlineMergingConfig,
    learning_rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of `make_optimizer` with its steps merged as `merging` says; `merge: none` is that one itself.

    model: Policy, ActorCritic, …, holding the SFT weights: make the optimizer before a checkpoint is read into the
    model and before accelerate wraps it. Only the parameters of parts["model"] are merged, others get plain AdamW.
    Raises UserError for parameters that the base model has not (adapters among them).
    """
    if merging.merge == "none":
        return make_optimizer(model, config, learning_rates)
    parts: Mapping[str, Any] = model.parts  # type: ignore[assignment]
    base_names = {p: n for n, p in base_of(parts["model"]).named_parameters()}
    names = {p: n for n, p in model.named_parameters()}
    groups = []
    for group in parameter_groups(model, config, learning_rates or {}):
        for merge in (True, False):
            members = [(names[p], p) for p in group["params"] if (p in base_names) == merge]
            if members:
                groups.append({**group, "params": members, "merge": merge})
    vectors = None
    if merging.merge_alpha:
        base = load_base_weights(merging.merge_base_model)
        dtype = getattr(torch, merging.merge_dtype)
        merged = [member for group in groups if group["merge"] for member in group["params"]]
        vectors = {n: task_vector(base_names[p], p, base, dtype) for n, p in merged}
    betas = (config.adam_beta1, config.adam_beta2)
    return OnlineMerging(
        groups, vectors, merging, config.seed, lr=config.learning_rate, betas=betas, eps=config.adam_eps
    )


@dataclass(slots=True)
class _Slot:
    """What is merged into a tensor of n entries (a parameter, or this rank's shard of one or of several).

    stream: what its masks depend on besides seed and step, (parameter index, shard number). tau: [n], None without
    pull. largest: for OnTIES, in its stead, the places and values of tau's kept entries.
    """

    stream: tuple[int, int]
    tau: torch.Tensor | None
    largest: tuple[torch.Tensor, torch.Tensor] | None = None


class OnlineMerging(torch.optim.Optimizer):
    """AdamW (fused) whose steps are merged; any trainer can use it.

    groups: parameter groups of (name, parameter) pairs; a group with `merge: False` gets plain AdamW. vectors: tau per
    name, of the parameter's shape; None for alpha = 0. Steps are counted per parameter, as AdamW counts them: one
    without a gradient is none for it.

    Masks follow from (seed, step, parameter index, shard number) alone, on devices of one kind: replicas draw the same,
    and a run that goes on draws what it would have drawn. Under FSDP2 and ZeRO each rank sparsifies its shard; OnTIES,
    which ranks a whole tensor, raises UserError there.

    The state is AdamW's, `merge_step` and, within a cycle of K, `anchor`: the weights with nothing but weight decay
    since the last merge, so that Delta_c = theta - anchor and undoing it is a copy. Groups carry the fingerprint of
    tau, which is not saved itself: loading a state made with another tau raises UserError.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        vectors: Mapping[str, torch.Tensor] | None,
        config: OnlineMergingConfig,
        seed: int,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        # computes moments and plain steps; its state and groups are this optimizer's, lent to it in each step
        self._adam = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        super().__init__(self._adam.param_groups, self._adam.defaults)
        self._step_supports_amp_scaling = False  # a gradient scaler has to skip whole steps, not the moments alone
        self.config, self.seed = config, seed
        self.fingerprint = "none" if vectors is None else fingerprint(vectors)
        self._vectors = None if vectors is None else dict(vectors)  # those that no tensor has asked for yet
        self._slots: dict[torch.Tensor, _Slot] = {}
        self._generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            group["merge_fingerprint"] = self.fingerprint
            group.setdefault("merge", True)
        named = {n: p for g in self.param_groups if g["merge"] for n, p in zip(g["param_names"], g["params"])}
        self._index = {name: i for i, name in enumerate(named)}
        # FSDP2 and ZeRO exchange the tensors in the groups; the parameters are the model's to keep alive
        self._parameters = weakref.WeakValueDictionary(named)
        if config.merge == "onties" and any(is_sharded(p) for p in named.values()):
            raise UserError(ONTIES_SHARDED)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError when the state was made with another tau, or by another optimizer."""
        for group in state_dict["param_groups"]:
            saved = group.get("merge_fingerprint")
            if saved != self.fingerprint:
                made = "without online merging" if saved is None else f"with the SFT - base of fingerprint {saved}"
                raise UserError(
                    f"the optimizer state was made {made}, this run has {self.fingerprint}: give the merge_base_model, "
                    "merge_dtype and model_name_or_path that the run began with, or another output_dir to start anew"
                )
        super().load_state_dict(state_dict)

    # --- a step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lent: list[dict[str, Any]] = []
        merges: list[tuple[torch.Tensor, dict[str, Any]]] = []
        kept: dict[torch.Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            tensors = [p for p in group["params"] if p.grad is not None]
            due = {p for p in tensors if group["merge"] and self._is_due(p, group)}
            if group["merge"]:
                kept |= {p: self._bookkeeping(p, group, p in due) for p in tensors}
            lent.append({**group, "params": [p for p in tensors if p not in due]})
            # at learning rate 0 the kernel updates the moments and leaves the weights, bit for bit, as they are
            lent.append({**group, "params": [p for p in tensors if p in due], "lr": 0.0, "weight_decay": 0.0})
            merges += [(p, group) for p in lent[-1]["params"]]
        self._adam.state, self._adam.param_groups = self.state, lent
        self._adam.step()
        for p, values in kept.items():  # only now: AdamW takes a tensor with any state for one with moments
            self.state[p].update(values)
        for p, group in merges:
            self._merge(p, group)
        return loss

    def _is_due(self, p: torch.Tensor, group: dict[str, Any]) -> bool:
        """Whether this step of p is a merge that does anything."""
        if self._is_plain():
            return False
        self._slot(p, group)  # here, so that what cannot be merged is refused in the first step
        return self._count(p) % self.config.merge_every == self.config.merge_every - 1

    def _is_plain(self) -> bool:
        """Whether a merge would be the AdamW step that it merges."""
        return self.config.merge_keep == 1 and not self.config.merge_alpha

    def _count(self, p: torch.Tensor) -> int:
        """Steps that p has taken."""
        return self.state[p].get("merge_step", 0)

    def _bookkeeping(self, p: torch.Tensor, group: dict[str, Any], merging: bool) -> dict[str, Any]:
        """What p's state gets in this step besides the moments."""
        state: dict[str, Any] = {"merge_step": self._count(p) + 1}
        if merging or self.config.merge_every == 1 or self._is_plain():
            return state
        anchor = self.state[p].get("anchor")
        anchor = p.detach().clone() if anchor is None else anchor
        if group["weight_decay"]:
            anchor.mul_(1 - group["lr"] * group["weight_decay"])
        return {**state, "anchor": anchor}

    def _merge(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """Merge the Adam update of the moments as they now are, and what was cached since the last merge, into p."""
        c, state, slot = self.config, self.state[p], self._slots[p]
        anchor = state.pop("anchor", None)
        weights = [local(t).view(-1) for t in (p, anchor) if t is not None]
        if not weights[0].numel():
            return
        if group["weight_decay"]:
            for flat in weights:
                flat.mul_(1 - group["lr"] * group["weight_decay"])
        update = Update(
            theta=weights[0],
            exp_avg=local(state["exp_avg"]).view(-1),
            exp_avg_sq=local(state["exp_avg_sq"]).view(-1),
            anchor=weights[1] if anchor is not None else None,
            step=state["merge_step"],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
        )
        if c.merge_keep == 1:
            merge_whole(update, slot.tau, c.merge_alpha, by_sign=c.merge == "onties")
        elif c.merge == "onties":
            merge_largest(update, slot.largest, c.merge_alpha, c.merge_keep)
        else:
            scale = 1 / c.merge_keep if c.merge_rescale == "unbiased" else 1.0
            merge_random(update, slot.tau, c.merge_alpha, scale, lambda term: self._draw(update, slot, term))

    def _draw(self, update: Update, slot: _Slot, term: int) -> torch.Tensor:
        """The places that OnDARE keeps of one term."""
        device = update.theta.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        words = np.random.SeedSequence([self.seed, update.step, *slot.stream, term])
        self._generators[device].manual_seed(int(words.generate_state(1, np.uint64)[0]))
        return random_entries(update.theta.numel(), self.config.merge_keep, self._generators[device])

    # --- tau ----------------------------------------------------------------------------------------------------------

    def _slot(self, p: torch.Tensor, group: dict[str, Any]) -> _Slot:
        """What is merged into p, made at p's first step: by then accelerate has moved, sharded or exchanged it."""
        if p not in self._slots:
            names = group["param_names"]
            here = next(i for i, q in enumerate(group["params"]) if q is p)
            name = names[min(here, len(names) - 1)]
            if isinstance(p, DTensor) or p is self._parameters.get(name):
                slot = self._slot_of_parameter(name, p)
            else:
                slot = self._slot_of_partition(p, names)
            self._slots[p] = self._settle(slot, p)
        return self._slots[p]

    def _slot_of_parameter(self, name: str, p: torch.Tensor) -> _Slot:
        if self.config.merge == "onties" and is_sharded(p):
            raise UserError(ONTIES_SHARDED)
        tau = None if self._vectors is None else shard_like(self._vectors.pop(name), p)
        return _Slot((self._index[name], shard_number(p)), tau)

    def _slot_of_partition(self, flat: torch.Tensor, names: list[str]) -> _Slot:
        """Of a flat partition of several parameters, as DeepSpeed ZeRO makes them."""
        if self.config.merge == "onties":
            raise UserError(ONTIES_SHARDED)
        parameters = {name: self._parameters[name] for name in names if name in self._parameters}
        if len(parameters) < len(names) or not all(map(is_partitioned, parameters.values())):
            raise UserError(
                "merge: the optimizer was given tensors that are neither the model's parameters nor shards of them as "
                "FSDP2 (DTensor) or DeepSpeed ZeRO make them: use one of these, or merge: none"
            )
        pieces, settled = pieces_of(flat, parameters)
        index, tau = self._index[pieces[0].name if pieces else names[0]], None
        if self._vectors is not None:
            tau = gather(flat, pieces, self._vectors)
            for name in settled:
                self._vectors.pop(name, None)
        return _Slot((index, rank()), tau)

    def _settle(self, slot: _Slot, p: torch.Tensor) -> _Slot:
        """tau on its device, and for OnTIES no more of it than its kept entries."""
        if slot.tau is None:
            return slot
        tau, device = slot.tau.flatten(), "cpu" if self.config.merge_device == "cpu" else p.device
        if self.config.merge == "onties" and self.config.merge_keep < 1:
            places, values = largest_entries(lambda where: tau[where], tau, self.config.merge_keep)
            slot.tau, slot.largest = None, (places.to(device), values.to(device))
        else:
            slot.tau = tau.to(device)
        return slot

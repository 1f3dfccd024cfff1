"""Rotary position embeddings for longer contexts than a model was trained on: a larger base, YaRN, dynamic NTK.

YaRN: arXiv 2309.00071. A larger base before training on longer text: Qwen2.5 (arXiv 2412.15115, section 3) went from
10,000 to 1,000,000. Dynamic NTK is for generation: it changes nothing up to the length that the model knows, which
stays in its configuration; beyond it the base depends on the longest sequence of a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedConfig

from alignment.errors import UserError


@dataclass
class RopeConfig:
    """Settings of a recipe; those left out stay as the checkpoint has them."""

    rope_theta: float = field(default=0.0, metadata={"help": "Base of the rotary embeddings; 0 = the checkpoint's."})
    rope_type: Literal["checkpoint", "default", "yarn", "dynamic", "linear"] = field(
        default="checkpoint", metadata={"help": "How positions are stretched; checkpoint: as it was trained."}
    )
    rope_factor: float = field(default=0.0, metadata={"help": "How much longer than the original length."})
    max_position: int = field(
        default=0, metadata={"help": "Longest sequence; 0 = original length times rope_factor, else the checkpoint's."}
    )

    def __post_init__(self):
        stretched = self.rope_type in ("yarn", "dynamic", "linear")
        if self.rope_theta < 0 or self.max_position < 0:
            raise UserError("rope_theta and max_position have to be 0 or more")
        if stretched and self.rope_factor <= 1:
            raise UserError(f"rope_factor: {self.rope_factor} is not valid for `rope_type: {self.rope_type}`, it has "
                            "to be above 1")  # fmt: skip
        if self.rope_type == "dynamic" and self.max_position:
            raise UserError(
                "max_position: `rope_type: dynamic` sets in beyond the length of the checkpoint; leave it out"
            )
        if not stretched and self.rope_factor:
            raise UserError("rope_factor: it goes with `rope_type: yarn`, `dynamic` or `linear`")

    def apply(self, config: PreTrainedConfig) -> None:
        """Change a model's configuration before it is loaded; what it was saved with is what it runs with later.
        Raises UserError for a model without one rotary embedding for all layers."""
        if not self.rope_theta and self.rope_type == "checkpoint" and not self.max_position:
            return
        text = config.get_text_config()
        old = getattr(text, "rope_parameters", None)
        if not isinstance(old, dict) or "rope_theta" not in old:
            raise UserError(f"rope_theta, rope_type: {type(config).__name__} has no single rotary embedding to set")
        new = dict(old)
        if self.rope_theta:
            new["rope_theta"] = self.rope_theta
        if self.rope_type != "checkpoint":
            length = old.get("original_max_position_embeddings", text.max_position_embeddings)
            new = {"rope_type": self.rope_type, "rope_theta": new["rope_theta"]}
            if self.rope_factor:
                new |= {"factor": self.rope_factor, "original_max_position_embeddings": length}
                stretch = 1 if self.rope_type == "dynamic" else self.rope_factor  # whose limit is where it sets in
                text.max_position_embeddings = int(length * stretch)
        if self.max_position:
            text.max_position_embeddings = self.max_position
        text.rope_parameters = new


def check_length(config: PreTrainedConfig, max_length: int) -> None:
    """Raises UserError for rows so long that their rotary embedding would depend on the rows packed beside them."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kind, limit = rope.get("rope_type"), rope.get("original_max_position_embeddings") or text.max_position_embeddings
    if kind in ("dynamic", "longrope") and max_length > limit:
        raise UserError(
            f"max_length: {max_length} exceeds the {limit} tokens up to which `rope_type: {kind}` is one embedding; "
            "beyond it, it depends on the longest row of a forward pass. Lower max_length, or take `rope_type: yarn`"
        )

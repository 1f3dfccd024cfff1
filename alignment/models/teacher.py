"""Teachers of a distillation: models that say which tokens could have come at the scored positions of trees.

Shapes: N scored positions, H hidden width, V real tokens of the vocabulary, K most probable tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from alignment.errors import UserError
from alignment.models.load import load_model, load_tokenizer
from alignment.models.policy import Policy
from alignment.models.score import write_column
from alignment.models.soft_head import teacher_top_k
from alignment.packing import cut
from alignment.types import PackedBatch, Tree

HIDDEN = "teacher_hidden"
"""Column of a local teacher's last hidden states, [N, H]."""
IDS, LOG_P = "teacher_ids", "teacher_logprobs"
"""Columns of its K most probable tokens, [N, K], and the log-probabilities of these and all others together,
[N, K + 1], nats. Ids below 2^24 are exact in float32."""


class Teacher(Protocol):
    """name: what the user calls it. identity: changes with what it says (a fingerprint)."""

    name: str
    identity: str

    def add_top_k(self, trees: Sequence[Tree], k: int, temperature: float) -> None:
        """Write the columns IDS and LOG_P at every scored token."""
        ...


class LocalTeacher:
    """A model in this process. Raises UserError when it embeds fewer tokens than `vocabulary`.

    device: where its layers compute. head_device: where its head is wanted, which is the student's. rests: between two
    calls its weights, but for the head's, are in the CPU's memory. max_tokens: of one packed row.
    """

    def __init__(
        self,
        policy: Policy,
        vocabulary: int,
        name: str = "teacher",
        identity: str = "",
        max_tokens: int = 16384,
        device: torch.device | str = "cpu",
        head_device: torch.device | str = "cpu",
        rests: bool = False,
    ):
        self.name, self.identity, self.max_tokens, self.vocabulary = name, identity, max_tokens, vocabulary
        self.policy = policy.requires_grad_(False).eval()
        head = cast(nn.Module, policy.base.get_output_embeddings())
        rows = policy.base.config.get_text_config().vocab_size
        if rows < vocabulary:
            raise UserError(f"teacher {name}: it has {rows} tokens, the student's tokenizer has {vocabulary}")
        self.device, self.rests = torch.device(device), rests
        if not rests and not getattr(policy.base, "is_quantized", False):  # quantised weights are where they belong
            policy.to(self.device)
        apart = rests or _place(torch.device(head_device)) != _place(next(head.parameters()).device)
        self.head = copy.deepcopy(head).to(head_device) if apart else head

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return self.policy.base.config.get_text_config().hidden_size

    @property
    def bfloat16(self) -> bool:
        """Whether its head takes hidden states of that type, so that they lose nothing in it."""
        return next(self.head.parameters()).dtype == torch.bfloat16

    @torch.no_grad()
    def add_hidden(self, trees: Sequence[Tree], width: int, bfloat16: bool = False) -> None:
        """Write the column HIDDEN, filled up with zeros to `width`, at every scored token."""
        for micro, hidden_NH in self._hidden(trees):
            padded_NW = nn.functional.pad(hidden_NH, (0, width - hidden_NH.shape[1]))
            write_column(micro, HIDDEN, padded_NW, bfloat16)

    @torch.no_grad()
    def add_top_k(self, trees: Sequence[Tree], k: int, temperature: float) -> None:
        for micro, hidden_NH in self._hidden(trees):
            at_head = hidden_NH.to(next(self.head.parameters()).device)
            ids_NK, log_p_NK1 = teacher_top_k(self.head, at_head, k, self.vocabulary, temperature)
            write_column(micro, IDS, ids_NK)
            write_column(micro, LOG_P, log_p_NK1)

    def _hidden(self, trees: Sequence[Tree]) -> Iterator[tuple[PackedBatch, torch.Tensor]]:
        micros = [micro for micro in cut(trees, self.max_tokens) if micro.rows]
        if not micros:
            return
        with self._awake():
            for micro in (micro.to(self.device) for micro in micros):
                yield micro, self.policy.hidden_states(micro).index_select(0, micro.score_index_N)

    @contextmanager
    def _awake(self) -> Iterator[None]:
        if not self.rests:
            yield
            return
        self.policy.to(self.device)
        try:
            yield
        finally:
            self.policy.to("cpu")


def load_teacher(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    student_device: torch.device,
    device: str = "",
    offload: bool = False,
    max_tokens: int = 16384,
) -> LocalTeacher:
    """The teacher at config.model_name_or_path, in any type, also 8 or 4 bit. tokenizer: the student's.

    device: empty = the student's. offload: the weights (not the head's) stay in the CPU's memory between two steps.
    Raises UserError for another tokenizer and for settings that do not go together.
    """
    name = config.model_name_or_path or ""
    with _as_teachers():
        check_same_tokenizer(tokenizer, load_tokenizer(name), name)
        model = cast(PreTrainedModel, load_model(config))
    quantised = getattr(model, "is_quantized", False)
    if quantised and (offload or device):
        raise UserError(
            f"teacher {name}: a quantised model stays on the device it was loaded to; leave out teacher_offload and "
            "teacher_device"
        )
    try:
        where = model.device if quantised else torch.device(device or student_device)
        return LocalTeacher(
            Policy(model), vocabulary_of(tokenizer), name, "", max_tokens, where, student_device, offload
        )
    except RuntimeError as error:
        raise UserError(f"teacher_device: {device!r} cannot be used: {error}") from error


def _place(device: torch.device) -> tuple[str, int]:
    """`cuda` is the current one of several, which a tensor's device names by its number."""
    current = torch.cuda.current_device() if device.type == "cuda" and device.index is None else 0
    return device.type, current if device.index is None else device.index


@contextmanager
def _as_teachers() -> Iterator[None]:
    """Errors in loading name the setting that names the teacher, not the student's."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model_name_or_path", "teachers", 1)) from error


# --- tokenizers -------------------------------------------------------------------------------------------------------


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of ids that stand for tokens; models often have more rows, as padding."""
    return max(tokenizer.get_vocab().values()) + 1


def check_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str) -> None:
    """Raises UserError, naming the first token that differs, unless every id stands for the same token in both."""
    difference = first_difference(student, teacher, "student", "teacher")
    if difference:
        raise UserError(
            f"teacher {name}: its tokenizer is not the student's. {difference}. Distributions can only be compared "
            "over the same tokens: take a teacher of the same family, or train on its responses (soft_coef: 0, "
            "hard_coef: 1)"
        )


def first_difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, name_a: str, name_b: str) -> str:
    """The first token that differs, in words; empty when every id stands for the same token in both."""
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (a, b))
    different = [i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i)]
    if not different:
        return ""
    first = min(different)
    return (
        f"The first of {len(different)} tokens that differ is {first}: {_shown(ours, first)} for the {name_a}, "
        f"{_shown(theirs, first)} for the {name_b}"
    )


def _shown(tokens: dict[int, str], i: int) -> str:
    return repr(tokens[i]) if i in tokens else "no token"

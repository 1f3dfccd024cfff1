"""A byte-level BPE tokenizer trained on a recipe's own texts, with the toolkit's ChatML template."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK = ("<think>", "</think>")
# Every digit and every operator is a token of its own, so that a calculation looks the same wherever it stands.
_SINGLE = Regex(r"\d|[-+*/%()=]")


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on `texts`; the same texts give the same tokenizer. Any text can be encoded (256 bytes are in the base).

    `<|endoftext|>` pads, `<|im_end|>` ends a turn. The thinking marks are single tokens that decoding keeps even with
    `skip_special_tokens`, as in Qwen3, because verifiers and rewards read them. The vocabulary is smaller than
    `vocab_size` if the texts hold fewer repeated pairs.
    Raises ValueError if `vocab_size` leaves no room for the bytes and the special tokens.
    """
    special = [PAD, START, END, *THINK]
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size: {vocab_size} is below the {256 + len(special)} of all bytes and special tokens")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_SINGLE, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (PAD, START, END)])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=_chatml(),
        clean_up_tokenization_spaces=False,
    )


def _chatml() -> str:
    from alignment.chat.template import CHATML

    return CHATML

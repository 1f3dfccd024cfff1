"""What a mixture of both modes holds, in conversations, answers and tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from alignment.data.fusion import Row, answer_modes
from alignment.data.sft_rows import encode_row
from alignment.errors import UserError


@dataclass(slots=True)
class Part:
    """answers: trained turns; scored: their tokens with loss."""

    answers: int = 0
    scored: int = 0


@dataclass(slots=True)
class FusionReport:
    """conversations, those of several questions, tokens in all, and by kind of answer ("thinking, flag", "thinking, no
    flag", "no_think, flag", "no_think, flag before") the answers and their scored tokens."""

    conversations: int
    multi_turn: int
    tokens: int
    parts: dict[str, Part]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file, with the shares of answers and of scored tokens."""
        answers, scored = (sum(getattr(p, name) for p in self.parts.values()) for name in ("answers", "scored"))
        parts = {
            kind: {
                "answers": part.answers,
                "answer_share": part.answers / answers,
                "scored_tokens": part.scored,
                "scored_share": part.scored / max(1, scored),
            }
            for kind, part in self.parts.items()
        }
        return {
            "conversations": self.conversations,
            "multi_turn": self.multi_turn,
            "tokens": self.tokens,
            "scored_tokens": scored,
            "answers": parts,
        }

    def table(self) -> Table:
        content = self.as_dict()
        title = (
            f"{self.conversations:,} conversations ({self.multi_turn:,} of several questions), {self.tokens:,} tokens, "
            f"{content['scored_tokens']:,} with loss"
        )
        table = Table("answers", title=title)
        for column in ("number", "share", "tokens with loss", "share"):
            table.add_column(column, justify="right")
        for kind, part in content["answers"].items():
            table.add_row(
                kind,
                f"{part['answers']:,}",
                f"{part['answer_share']:.1%}",
                f"{part['scored_tokens']:,}",
                f"{part['scored_share']:.1%}",
            )
        return table


def fusion_report(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> FusionReport:
    """Encodes every row as SFT does. Raises UserError for a row that cannot be, with its number."""
    parts: dict[str, Part] = defaultdict(Part)
    tokens = multi_turn = 0
    for number, row in enumerate(rows, 1):
        try:
            chat = encode_row(row, tokenizer)
        except UserError as error:
            raise UserError(f"row {number} of the mixture: {error}") from error
        tokens += len(chat.token_ids)
        multi_turn += sum(message["role"] == "user" for message in row["messages"]) > 1
        modes = answer_modes(row["messages"])
        for turn in chat.turns:
            mode, flagged = modes[turn.message]
            without = "no flag" if mode == "thinking" else "flag before"
            part = parts[f"{mode}, {'flag' if flagged else without}"]
            part.answers += 1
            part.scored += turn.end - turn.start
    return FusionReport(len(rows), multi_turn, tokens, dict(sorted(parts.items(), reverse=True)))

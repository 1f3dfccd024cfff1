"""Verifiers: functions `(response, row) -> Verdict` that check a response against its task row.

    >>> from verifiers import verify
    >>> verify("math", "So it is \\\\boxed{72}.", {"answer": "72"}).status
    'pass'

Importing this package loads the standard library only; a verifier's own dependencies load when it is first used.
"""

from verifiers.batch import verify_all
from verifiers.registry import (
    AnswerOf,
    GoldResponse,
    NoAnswerKeyError,
    Verifier,
    VerifierInfo,
    answer_key,
    cannot_judge,
    get_verifier,
    gold_response,
    list_verifiers,
    register_verifier,
    verifier_info,
    verify,
)
from verifiers.verdict import STATUSES, Status, Verdict

__all__ = [
    "STATUSES",
    "AnswerOf",
    "GoldResponse",
    "NoAnswerKeyError",
    "Status",
    "Verdict",
    "Verifier",
    "VerifierInfo",
    "answer_key",
    "cannot_judge",
    "get_verifier",
    "gold_response",
    "list_verifiers",
    "register_verifier",
    "verifier_info",
    "verify",
    "verify_all",
]

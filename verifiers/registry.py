"""Verifiers by name: registration, lookup with did-you-mean, and the call that turns exceptions into verdicts."""

from __future__ import annotations

import difflib
import importlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from verifiers.response import with_open_block
from verifiers.verdict import Verdict

Verifier = Callable[[str, Mapping[str, Any]], Verdict]
AnswerOf = Callable[[str, Mapping[str, Any]], Hashable | None]
Parts = Callable[[Mapping[str, Any]], Iterable[tuple[str, Mapping[str, Any]]]]
GoldResponse = Callable[[Any, Mapping[str, Any]], str]

# Built-in verifiers and the module that registers each; a module is imported when its name is first asked for.
_BUILTIN_MODULES: dict[str, str] = {
    "all_of": "verifiers.compose",
    "any_of": "verifiers.compose",
    "by_task": "verifiers.compose",
    "choice": "verifiers.choice",
    "citation": "verifiers.citation",
    "code": "verifiers.code",
    "code_weak": "verifiers.code",
    "format": "verifiers.format",
    "ifeval": "verifiers.ifeval",
    "ifeval_loose": "verifiers.ifeval",
    "json": "verifiers.json",
    "math": "verifiers.math",
    "text": "verifiers.text",
    "tool_call": "verifiers.tool_call",
    "weighted": "verifiers.compose",
}


@dataclass(frozen=True, slots=True)
class VerifierInfo:
    """A registered verifier: the row columns it needs, those it reads when present, its docstring's first line; if it
    has them, the functions that read the answer out of a response as a key for majority votes, that write a response
    around a gold answer, and that name the verifiers it is made of."""

    name: str
    fn: Verifier
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    summary: str
    answer_of: AnswerOf | None = None
    gold_response: GoldResponse | None = None
    parts: Parts | None = None


_registered: dict[str, VerifierInfo] = {}


def first_docstring_line(fn: Callable[..., Any]) -> str:
    return (fn.__doc__ or "").strip().split("\n")[0]


def register_verifier(
    name: str,
    columns: Iterable[str] = (),
    optional: Iterable[str] = (),
    answer_of: AnswerOf | None = None,
    gold_response: GoldResponse | None = None,
    parts: Parts | None = None,
) -> Callable[[Verifier], Verifier]:
    """Register `fn(response, row) -> Verdict` under `name`.

    columns: row columns the verifier needs; `verify` answers `error` for a row without them.
    optional: row columns it reads when present.
    answer_of: `(response, row) -> key`, equal for equal answers and None where there is none; for majority votes.
    gold_response: `(gold answer, row) -> response` that gives it, where the gold answer as a text is none.
    parts: `row -> (name, row) of each` verifier that it asks, for one made of others.
    Raises ValueError when the name is taken by another function.
    """

    def register(fn: Verifier) -> Verifier:
        known = _registered.get(name)
        same = known is not None and (known.fn.__module__, known.fn.__qualname__) == (fn.__module__, fn.__qualname__)
        taken = known is not None or _BUILTIN_MODULES.get(name, fn.__module__) != fn.__module__
        if taken and not same:
            raise ValueError(f"a verifier named {name!r} is already registered; choose another name")
        summary = first_docstring_line(fn)
        _registered[name] = VerifierInfo(
            name, fn, tuple(columns), tuple(optional), summary, answer_of, gold_response, parts
        )
        return fn

    return register


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def load_object(path: str) -> Any:
    """The object at `package.module:name`. Raises ValueError with the reason when it is not there."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r} for {path!r}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"module {module_name!r} has no {attribute!r}{did_you_mean(attribute, vars(module))}")
    return getattr(module, attribute)


def verifier_info(name: str) -> VerifierInfo:
    """What is registered under `name` or stands at `package.module:function`. Raises ValueError for anything else."""
    if name not in _registered and name in _BUILTIN_MODULES:
        importlib.import_module(_BUILTIN_MODULES[name])
    if name in _registered:
        return _registered[name]
    if ":" in name:
        fn = load_object(name)
        if not callable(fn):
            raise ValueError(f"{name!r} is not callable, so it cannot be a verifier")
        known = (info for info in _registered.values() if info.fn is fn)
        return next(known, VerifierInfo(name, fn, (), (), first_docstring_line(fn)))
    names = list_verifiers()
    raise ValueError(f"unknown verifier {name!r}{did_you_mean(name, names)} Known verifiers: {', '.join(names)}")


def get_verifier(name: str) -> Verifier:
    """The verifier registered under `name`, or the function at `package.module:function`."""
    return verifier_info(name).fn


def list_verifiers() -> list[str]:
    """Sorted names of the built-in and the registered verifiers; loads none of them."""
    return sorted({*_BUILTIN_MODULES, *_registered})


def verify(verifier: str | Verifier, response: str, row: Mapping[str, Any]) -> Verdict:
    """Run a verifier so that nothing but a wrong name raises: an exception, a missing column or a return value that
    is no `Verdict` becomes status `error` (unscored). `seconds` is measured where the verifier left it at 0. A thinking
    block that the prompt opened (column `think_opened`) and the response never closes holds no answer."""
    info = verifier_info(verifier) if isinstance(verifier, str) else None
    fn = info.fn if info else verifier
    missing = [c for c in info.columns if c not in row] if info else []
    if info and missing:
        has = ", ".join(row) or "no columns"
        return Verdict(None, "error", f"verifier {info.name!r} needs the column {missing[0]!r}; the row has {has}")
    if info and "think_opened" not in info.optional:
        response = with_open_block(response, row)
    start = time.perf_counter()
    try:
        verdict = fn(response, row)  # type: ignore[operator]
        if not isinstance(verdict, Verdict):
            raise TypeError(f"returned {type(verdict).__name__} instead of a Verdict")
    except Exception as error:
        name = info.name if info else getattr(fn, "__name__", repr(fn))
        detail = f"verifier {name!r} raised {type(error).__name__}: {error}"
        return Verdict(None, "error", detail, time.perf_counter() - start)
    return verdict if verdict.seconds else replace(verdict, seconds=time.perf_counter() - start)


def cannot_judge(name: str, row: Mapping[str, Any]) -> str:
    """Why a verifier, or one of those it is made of, errs on the row whatever the response; "" when it can judge.

    >>> cannot_judge("math", {"question": "2 + 2?"})
    "verifier 'math' needs the column 'answer'; the row has question"
    >>> cannot_judge("code", {"tests": ["assert add(1, 2) == 3"]})
    ''

    Raises ValueError for an unknown name.
    """
    info = verifier_info(name)
    verdict = verify(name, "", row)
    if verdict.status == "error":
        return verdict.detail
    # a part that fails the empty response decides before another one errs, so each is asked alone
    parts = info.parts(row) if info.parts else ()
    return next((why for part, own in parts if (why := cannot_judge(part, own))), "")


def gold_response(name: str, gold: Any, row: Mapping[str, Any]) -> str:
    """A response that gives a row's gold answer, to check the row; of a list of accepted answers the first.

    Raises ValueError for an unknown name.
    """
    info = verifier_info(name)
    if info.gold_response is not None:
        try:
            return info.gold_response(gold, row)
        except Exception:  # a row that the verifier cannot read either; its verdict tells why
            pass
    return gold_text(gold)


def gold_text(gold: Any) -> str:
    """A gold answer as a text; of a list of accepted answers the first."""
    first = gold[0] if isinstance(gold, (list, tuple)) and gold else gold
    return first if isinstance(first, str) else json.dumps(first, default=str)


class NoAnswerKeyError(ValueError):
    """The verifier has no function that reads the answer out of a response."""


def answer_key(name: str, response: str, row: Mapping[str, Any]) -> Hashable | None:
    """What a majority vote counts: equal keys are one answer, None (no answer could be read) is no vote.

    Raises NoAnswerKeyError when the verifier was registered without `answer_of`, ValueError for an unknown name.
    """
    info = verifier_info(name)
    if info.answer_of is None:
        raise NoAnswerKeyError(f"verifier {name!r} does not tell a response's answer: register it with `answer_of`")
    try:
        return info.answer_of(response, row)
    except NoAnswerKeyError:
        raise
    except Exception:  # a row or response that it cannot read; the verdict on it tells why
        return None

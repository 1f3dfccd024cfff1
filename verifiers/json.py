"""The `json` verifier: the response is one JSON value that keeps a schema."""

from __future__ import annotations

import json as json_library
import math
from collections.abc import Mapping
from typing import Any

from verifiers.registry import register_verifier
from verifiers.response import fenced_blocks, outside_thinking
from verifiers.verdict import Verdict
from verifiers.worker import Worker, WorkerTimeoutError

MAX_LENGTH = 1_000_000
_TOO_DEEP = "nested too deeply to be checked"
_schema_worker = Worker("verifiers.json:check_schema", timeout_s=5.0)


def _gold_value(gold: Any, row: Mapping[str, Any]) -> str:
    """The column `answer` holds a value; a text of another column is JSON already."""
    is_text = isinstance(gold, str) and gold != row.get("answer")
    return gold if is_text else json_library.dumps(gold)


@register_verifier("json", optional=("schema", "answer"), gold_response=_gold_value)
def json(response: str, row: Mapping[str, Any]) -> Verdict:
    """Valid JSON, in the last fenced block or as the whole answer, that keeps `schema` and equals `answer`.

    `schema`: a JSON schema, as an object or as text. `answer`: the expected value (numbers 1 and 1.0 are equal, true
    and 1 are not). Repeated keys, NaN and numbers beyond the range of floats are no JSON. A schema that takes more than
    5 s to check (a pattern can take exponential time) is a timeout.

    >>> json('{"a": 1}', {"schema": {"type": "object", "required": ["a"]}}).status
    'pass'
    >>> json('{"a": 1, "a": 2}', {}).status
    'unparsed'
    >>> json("[1, 2]", {"schema": {"type": "object"}}).detail
    "$: [1, 2] is not of type 'object'"
    >>> json("[true]", {"answer": [1]}).status
    'fail'

    Raises ValueError for an unusable schema. Needs the jsonschema package when a row has a schema.
    """
    text = outside_thinking(response)
    blocks = fenced_blocks(text or "")
    source = blocks[-1][1] if blocks else text
    if source is None or len(source) > MAX_LENGTH:
        return Verdict(0.0, "unparsed", "no answer outside the thinking block, or too long a one")
    try:
        value = _load(source)
    except (ValueError, RecursionError) as error:
        return Verdict(0.0, "unparsed", f"no JSON: {error}")
    try:
        broken = _schema_violation(value, row["schema"]) if row.get("schema") is not None else ""
    except WorkerTimeoutError:
        return Verdict(0.0, "timeout", "checking the schema took too long")
    if not broken and "answer" in row and not same_json(value, row["answer"]):
        broken = "not the expected value"
    return Verdict(0.0, "fail", broken) if broken else Verdict(1.0, "pass")


def _load(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("an object has a key twice")
        return dict(pairs)

    def finite(digits: str) -> float:
        if math.isinf(float(digits)):
            refuse(f"{digits[:20]}…")
        return float(digits)

    return json_library.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=unique)


def _schema_violation(value: Any, schema: Any) -> str:
    schema = json_library.loads(schema) if isinstance(schema, str) else schema
    try:
        violation, fault = _schema_worker.call([value, schema])
    except RecursionError:  # of the text on its way to the worker
        violation, fault = _TOO_DEEP, ""
    if fault:
        raise ValueError(fault)
    return str(violation)


def check_schema(request: list[Any]) -> list[str]:
    """Runs in the worker. [value, schema] -> [what the value violates, what is wrong with the schema itself]."""
    import jsonschema

    value, schema = request
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return ["", f"column 'schema' is no JSON schema: {error.message}"]
    try:
        worst = jsonschema.exceptions.best_match(validator(schema).iter_errors(value))
    except RecursionError:
        return [_TOO_DEEP, ""] if _depth(value) > 50 else ["", "column 'schema' refers to itself without end"]
    return [f"{worst.json_path}: {worst.message}"[:300] if worst else "", ""]


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [part for one in level if isinstance(one, (list, dict))
                 for part in (one.values() if isinstance(one, dict) else one)]  # fmt: skip
    return depth


def same_json(left: Any, right: Any) -> bool:
    """Equality of JSON values: booleans are no numbers, key order does not count."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same_json(a, b) for a, b in zip(left, right))
    return left == right

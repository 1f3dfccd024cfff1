"""The candidate's side of remote calls: its objects stay here, plain data and handles travel."""

from __future__ import annotations

import operator
import socket
from collections.abc import Callable
from typing import Any

from . import codec, wire, worker

_BINARY = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}


class Handles:
    """Objects that the other side may name, by number. The same object keeps its number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return {"h": [self.numbers[id(value)], type(value).__name__]}

    def decode(self, content: Any) -> Any:
        return self.objects[content[0]]


def serve(peer: socket.socket, source: str) -> None:
    """Load the program, then answer requests until the other side closes."""
    handles = Handles()
    namespace: dict[str, Any] = {}
    try:
        namespace = worker.load(source)
        wire.send(peer, {"ok": None})
    except BaseException as error:
        wire.send(peer, {"error": wire.describe(error)})
        raise
    while True:
        try:
            request = wire.receive(peer)
        except wire.PeerGone:
            return
        try:
            answer = _answer(request, namespace, handles)
        except BaseException as error:  # an exit counts as an error of the call
            answer = {"error": wire.describe(error)}
        try:
            wire.send(peer, answer)
        except codec.CodecError as error:
            wire.send(peer, {"error": wire.describe(error)})


def _answer(request: dict[str, Any], namespace: dict[str, Any], handles: Handles) -> dict[str, Any]:
    def decoded(key: str) -> Any:
        return codec.decode(request[key], handles.decode)

    operation = request["op"]
    if operation == "name":
        return {"ok": handles.encode(worker.resolve(namespace, request["name"]))}
    target = decoded("on")
    if operation == "call":
        args, kwargs = decoded("args"), decoded("kwargs")
        value = codec.encode(target(*args, **kwargs), handles.encode)
        return {"ok": value, "changed": _changed(request["args"], args, handles)}
    return {"ok": codec.encode(_OPERATIONS[operation](target, decoded("args")), handles.encode)}


def _changed(sent: list[Any], args: list[Any], handles: Handles) -> list[Any]:
    """[position, new content] of the list, dict and set arguments that the call changed in place."""
    changed = []
    for position, value in enumerate(args):
        if type(value) in (list, dict, set):
            now = codec.encode(value, handles.encode)
            if now != sent[position]:
                changed.append([position, now])
    return changed


def _iterate(target: Any, args: list[Any]) -> Any:
    return _Iterator(iter(target))


class _Iterator:
    """Keeps a list's iterator and its like a handle."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def _next(target: Any, args: list[Any]) -> Any:
    inner = target.inner if type(target) is _Iterator else target
    return [value for _, value in zip(range(1), inner)]  # [] at the end


_OPERATIONS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "attr": lambda target, args: getattr(target, args[0]),
    "setattr": lambda target, args: setattr(target, args[0], args[1]),
    "item": lambda target, args: target[args[0]],
    "setitem": lambda target, args: operator.setitem(target, args[0], args[1]),
    "len": lambda target, args: len(target),
    "iter": _iterate,
    "next": _next,
    "str": lambda target, args: str(target),
    "repr": lambda target, args: repr(target),
    "isinstance": lambda target, args: isinstance(args[0], target),
    "binary": lambda target, args: _BINARY[args[0]](target, args[1]),
}

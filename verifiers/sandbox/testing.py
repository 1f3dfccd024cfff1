"""The trusted side of remote calls: runs test code in a jail without any candidate code and states the result.

The names that the tests use and do not define are the candidate's; they are bound to proxies. What comes back is plain
data of built-in types or a proxy. A proxy never takes part in a comparison with data, has no truth value, and lends no
operator to the candidate that would show it an expected value: `candidate(x) == 5`, `abs(candidate(x) - 5) < 1e-6` and
`5 in candidate(x)` all decide here.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import socket
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from . import codec, wire


class TestSourceError(Exception):
    """The tests themselves cannot run, whatever the candidate does."""

    __test__ = False


class Link:
    """Requests to the serving jail."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.requests = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests += 1
        wire.send(self.peer, request)
        answer = wire.receive(self.peer)
        if type(answer) is not dict or ("ok" in answer) == ("error" in answer):
            raise wire.PeerGone("malformed answer")
        if "error" in answer:
            raise wire.rebuild(answer["error"])
        return answer

    def operate(self, operation: str, on: Proxy, *args: Any) -> Any:
        request = {"op": operation, "on": encode(on), "args": encode(list(args))}
        return self.decode(self.ask(request)["ok"])

    def decode(self, tree: Any) -> Any:
        def make(content: Any) -> Proxy:
            number, kind = content
            if type(number) is not int or type(kind) is not str:
                raise codec.CodecError("malformed handle")
            return Proxy(self, number, kind)

        return codec.decode(tree, make)


def encode(value: Any) -> Any:
    return codec.encode(value, _encode_proxy)


def _encode_proxy(value: Any) -> Any:
    if type(value) is not Proxy:
        raise TestSourceError(f"the tests pass a {type(value).__name__} to the program; only plain data can be passed")
    return {"h": [_parts(value)[1], ""]}


def _parts(proxy: Proxy) -> tuple[Link, int, str]:
    return object.__getattribute__(proxy, "_parts")


class Proxy:
    """Stands for an object of the candidate's jail."""

    __slots__ = ("_parts",)

    def __init__(self, link: Link, number: int, kind: str) -> None:
        object.__setattr__(self, "_parts", (link, number, kind))

    def _ask(self, operation: str, *args: Any) -> Any:
        return _parts(self)[0].operate(operation, self, *args)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        link = _parts(self)[0]
        request = {"op": "call", "on": encode(self), "args": encode(list(args)), "kwargs": encode(kwargs)}
        answer = link.ask(request)
        value = link.decode(answer["ok"])
        if value is None:  # a function that works in place; one that returns something must not touch the tests' data
            for position, tree in answer.get("changed", ()):
                _replace_content(args[position], link.decode(tree))
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)
        return Proxy._ask(self, "attr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        Proxy._ask(self, "setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return Proxy._ask(self, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        Proxy._ask(self, "setitem", key, value)

    def __len__(self) -> int:
        return Proxy._ask(self, "len")

    def __iter__(self) -> Iterator[Any]:
        inner = Proxy._ask(self, "iter")
        while item := Proxy._ask(inner, "next"):
            yield item[0]

    def __next__(self) -> Any:
        item = Proxy._ask(self, "next")
        if not item:
            raise StopIteration
        return item[0]

    def __str__(self) -> str:
        return str(Proxy._ask(self, "str"))

    def __repr__(self) -> str:
        return str(Proxy._ask(self, "repr"))

    def __instancecheck__(self, instance: Any) -> bool:
        return type(instance) is Proxy and Proxy._ask(self, "isinstance", instance) is True

    def __hash__(self) -> int:
        return hash(_parts(self)[1])

    def __eq__(self, other: Any) -> bool:
        if other is None:
            return False
        if type(other) is not Proxy:
            raise TypeError(f"the program returned a {_parts(self)[2]!r} object, which cannot be compared with data")
        return _parts(self)[1] == _parts(other)[1]

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        raise TypeError(f"the program returned a {_parts(self)[2]!r} object, which has no truth value here")


def _operator(name: str) -> Any:
    def apply(self: Proxy, other: Any) -> Any:
        return Proxy._ask(self, "binary", name, other) if type(other) is Proxy else NotImplemented

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Proxy, f"__{_name}__", _operator(_name))


def _replace_content(argument: Any, content: Any) -> None:
    """Give a list, dict or set of the tests what the candidate's copy of it became."""
    if type(argument) is not type(content) or type(argument) not in (list, dict, set):
        raise wire.PeerGone("malformed answer")
    argument.clear()
    argument.extend(content) if type(argument) is list else argument.update(content)


class Namespace(dict):
    """The tests' globals. A missing name is a standard module used as such, or else the candidate's."""

    def __init__(self, link: Link, called: set[str]) -> None:
        super().__init__(__name__="tests")
        self.link, self.called = link, called

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        if name in sys.stdlib_module_names and name not in self.called:
            self[name] = importlib.import_module(name)
        else:
            self[name] = self.link.decode(self.link.ask({"op": "name", "name": name})["ok"])
        return self[name]


def _compile(source: str, what: str) -> tuple[types.CodeType, set[str]]:
    """The code and the names that it calls as functions."""
    try:
        tree = ast.parse(source)
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        return compile(tree, what, "exec"), called
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestSourceError(f"the {what} does not compile: {error}") from None


def run_tests(peer: socket.socket, payload: dict[str, Any]) -> dict[str, Any]:
    """payload: setup (source), test (source that defines `check`, or ""), asserts (sources), entry_point ("" = none).

    Returns {"passed", "total", "detail"}, or {"broken": reason} when the tests themselves are at fault.
    """
    total = len(payload["asserts"]) + bool(payload["test"])
    link = Link(peer)
    try:
        sources = [payload["setup"], payload["test"], *payload["asserts"]]
        compiled = [_compile(source, "test") for source in sources]
    except TestSourceError as error:
        return {"broken": str(error)}
    namespace = Namespace(link, set().union(*(called for _, called in compiled)))
    codes = [code for code, _ in compiled]
    try:
        loaded = wire.receive(peer)
        if type(loaded) is not dict or "error" in loaded:
            raise wire.rebuild((loaded or {}).get("error"))
        _exec(codes[0], namespace)
        entry_point = payload["entry_point"]
        if entry_point:
            namespace.pop(entry_point, None)
            namespace[entry_point] = namespace.__missing__(entry_point)
        if payload["test"]:
            _exec(codes[1], namespace)
    except TestSourceError as error:
        return {"broken": str(error)}
    except BaseException as error:
        return {"passed": 0, "total": total, "detail": _one_line(error)}
    return _count(codes[2:], namespace, payload, total)


def _exec(code: types.CodeType, namespace: Namespace) -> None:
    """Run setup or test source. An exception before the candidate was asked anything is the source's own."""
    before = namespace.link.requests
    try:
        exec(code, namespace)
    except BaseException as error:
        if namespace.link.requests == before:
            raise TestSourceError(f"the test source raised {type(error).__name__}: {error}") from None
        raise


def _count(asserts: list[types.CodeType], namespace: Namespace, payload: dict[str, Any], total: int) -> dict[str, Any]:
    passed, detail = 0, ""
    steps: list[Any] = [lambda code=code: exec(code, namespace) for code in asserts]
    if payload["test"]:
        if "check" not in namespace:
            return {"broken": "the test defines no function 'check'"}
        steps.append(lambda: namespace["check"](namespace[payload["entry_point"]]))
    for number, step in enumerate(steps):
        try:
            step()
            passed += 1
        except TestSourceError as error:
            return {"broken": str(error)}
        except wire.PeerGone as error:
            return {"passed": passed, "total": total, "detail": f"the program ended during the tests ({error})"}
        except BaseException as error:
            detail = detail or f"test {number + 1} of {total}: {_one_line(error)}"
    return {"passed": passed, "total": total, "detail": detail}


def _one_line(error: BaseException) -> str:
    line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == "test"), None)
    where = f" at line {line} of the test" if line else ""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{where}{': ' if text else ''}{text}"

"""Framed messages over a jail's peer socket, and errors as plain data."""

from __future__ import annotations

import builtins
import socket
from typing import Any

from . import codec

MAX_MESSAGE = 8 << 20


class PeerGone(Exception):
    """The other end closed, or sent what is no message."""


def send(peer: socket.socket, tree: Any) -> None:
    text = codec.to_bytes(tree)
    if len(text) > MAX_MESSAGE:
        raise codec.CodecError(f"a message of {len(text)} bytes exceeds {MAX_MESSAGE}")
    try:
        peer.sendall(len(text).to_bytes(4, "little") + text)
    except OSError as error:
        raise PeerGone(str(error)) from None


def receive(peer: socket.socket) -> Any:
    size = int.from_bytes(_exactly(peer, 4), "little")
    if size > MAX_MESSAGE:
        raise PeerGone(f"announced a message of {size} bytes")
    return codec.from_bytes(_exactly(peer, size))


def _exactly(peer: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = peer.recv(min(size, 1 << 16))
        except OSError as error:
            raise PeerGone(str(error)) from None
        if not part:
            raise PeerGone("closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class RemoteError(Exception):
    """An exception of the other side that is no built-in one, an exit included."""


def describe(error: BaseException) -> list[str]:
    """[name of the nearest built-in exception class, message]."""
    names = [c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"]
    try:
        message = f"{type(error).__name__}: {error}"
    except BaseException:
        message = type(error).__name__
    return [names[0] if names else "Exception", message[:2000]]


_OWN_MEANING = ("StopIteration", "StopAsyncIteration")


def rebuild(described: Any) -> Exception:
    """The exception that `describe` described: a built-in Exception class by its name, else RemoteError."""
    try:
        name, message = str(described[0]), str(described[1])
    except (TypeError, IndexError, KeyError):
        return RemoteError("malformed error")
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and name not in _OWN_MEANING:
        try:
            return kind(message)
        except TypeError:  # such as UnicodeDecodeError, which takes five arguments
            return RemoteError(message)
    return RemoteError(message)

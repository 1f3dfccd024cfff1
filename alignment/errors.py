"""The error that a user can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input: a setting, a row or a file. The message names it and says what to do; no traceback is needed."""


class EngineLost(UserError):
    """No rollouts can be made any more, or no teacher be asked, although the policy is sound: the run saves before it
    stops."""


@contextmanager
def about(source: str) -> Iterator[None]:
    """Puts the name of a file in front of the errors in its rows."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Around a call into a library that reads a user's files or settings and may raise anything: its error as one of
    the user's, with `what` in front."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {str(error) or type(error).__name__}") from error


def shorten(value: object, length: int = 80) -> str:
    """The value as a message shows it: on one line, printable, not longer than `length`."""
    text = str(value) if isinstance(value, str | Path) else repr(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: length + 1])
    return text if len(text) <= length else text[: length - 3] + "..."


def as_line(error: UserError | OSError) -> str:
    """The message of an error; of the system's errors the file and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{shorten(error.filename, 200)}: {error.strerror}" if error.filename else error.strerror
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{text}. Free space, then start the same command again: what it has saved is kept" if full else text
    text = str(error) or type(error).__name__
    return text if len(text) <= 2000 else f"{text[:1000]} [...] {text[-900:]}"

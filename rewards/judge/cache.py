"""Replies on disk, so that no request is made twice: a file per reply, written in one step."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger("rewards")


class ReplyCache:
    """Request -> reply, shared by any number of threads, processes and machines that see the folder.

    A file appears by renaming, so a reader finds a whole reply or none. One that does not hold its own checksum is
    ignored and written anew. Raises ValueError when the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cache_dir: {folder} cannot be made: {error}") from error

    def path(self, request: bytes) -> Path:
        key = hashlib.sha256(request).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, request: bytes) -> str | None:
        """The reply, None when there is none or its file is damaged."""
        try:
            entry = json.loads(self.path(request).read_bytes())
            reply = entry["reply"]
            return reply if entry["sha256"] == _digest(reply) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def put(self, request: bytes, reply: str) -> None:
        """A folder that cannot be written to costs a warning, never the score."""
        path = self.path(request)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
                try:
                    json.dump({"reply": reply, "sha256": _digest(reply)}, file)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            if not self._warned:
                log.warning("judge: replies cannot be kept in %s: %s", self.folder, error)
            self._warned = True


def _digest(reply: str) -> str:
    return hashlib.sha256(reply.encode("utf-8", "surrogatepass")).hexdigest()

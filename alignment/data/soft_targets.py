"""What a teacher said about given tokens, on disk: its most probable tokens and the rest, a few hundred bytes a token.

A file begins with a line of JSON, the fingerprints of what it was made with. Then follow records: 16 bytes of key, the
number of tokens n and a checksum (uint32), n x K token ids (int32), n x (K + 1) log-probabilities (float16). Records
are added as they come and read where they lie, so a file may be larger than the memory.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from alignment.errors import UserError

_HEAD = struct.Struct("<16sII")
KEY_LENGTH = 16


class SoftTargetFile:
    """k: tokens per position. fingerprints: what else it was made with. remedy: what to do about a file of another
    setting, said in the error. Raises UserError for such a file."""

    def __init__(self, path: Path, k: int, fingerprints: Mapping[str, str], remedy: str):
        self.path, self.k, self.remedy = Path(path), k, remedy
        self.fingerprints: dict[str, str | int] = {"teacher_top_k": k, **fingerprints}
        self._places: dict[str, tuple[int, int]] = {}  # key: where the record begins, its tokens
        self._end = 0  # behind the last whole record
        self._bytes: mmap.mmap | None = None
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """See what was added to the file, also by another process. A torn last record is passed over."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        with self.path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not self._end:
            self._check(self._bytes)
        while self._end and self._end + _HEAD.size <= len(self._bytes):
            key, tokens, _ = _HEAD.unpack_from(self._bytes, self._end)
            end = self._end + _HEAD.size + self._size(tokens)
            if end > len(self._bytes):
                break
            self._places[key.decode("ascii", "replace")] = (self._end, tokens)
            self._end = end

    def append(self, records: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> None:
        """Add (key, ids [n, K], log-probabilities [n, K + 1]), flushed to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("ab") as file:
                file.truncate(self._end)  # what a kill has left of a record
                if not self._end:
                    file.write(json.dumps(self.fingerprints).encode() + b"\n")
                file.writelines(self._record(*record) for record in records)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error.strerror}. Free space or name another file"
            ) from error
        self.refresh()

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n, K] (int32) and log-probabilities [n, K + 1] (float32, normalised again after rounding).

        Raises KeyError for a key that is not there, UserError for a damaged record."""
        place, tokens = self._places[key]
        assert self._bytes is not None
        start = place + _HEAD.size
        content = self._bytes[start : start + self._size(tokens)]
        if zlib.crc32(content) != _HEAD.unpack_from(self._bytes, place)[2]:
            raise UserError(f"{self.path} is damaged at byte {place}: {self.remedy}")
        ids = np.frombuffer(content, "<i4", tokens * self.k).reshape(tokens, self.k)
        rounded = np.frombuffer(content, "<f2", offset=ids.nbytes).reshape(tokens, self.k + 1).astype(np.float32)
        return ids, rounded - np.log(np.exp(rounded).sum(-1, keepdims=True))

    def _size(self, tokens: int) -> int:
        return tokens * (4 * self.k + 2 * (self.k + 1))

    def _record(self, key: str, ids: np.ndarray, log_p: np.ndarray) -> bytes:
        n, name = len(ids), key.encode()
        if ids.shape != (n, self.k) or log_p.shape != (n, self.k + 1) or len(name) != KEY_LENGTH:
            raise ValueError(f"record {key}: {ids.shape} ids and {log_p.shape} log-probabilities, K is {self.k}")
        content = ids.astype("<i4").tobytes() + log_p.astype("<f2").tobytes()
        return _HEAD.pack(name, n, zlib.crc32(content)) + content

    def _check(self, content: mmap.mmap) -> None:
        line = content[: content.find(b"\n", 0, 1 << 16) + 1 or 1 << 16]
        if not line.endswith(b"\n") and json.dumps(self.fingerprints).encode().startswith(line):
            return  # killed while the first line was written: begin anew
        try:
            made_with = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path} is no file of soft targets: {self.remedy}") from error
        for name, value in self.fingerprints.items():
            if made_with.get(name) != value:
                raise UserError(
                    f"{self.path} was made with {name} {made_with.get(name)}, this run has {value}: {self.remedy}"
                )
        self._end = len(line)

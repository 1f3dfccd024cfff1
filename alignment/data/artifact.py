"""Results on disk that take long to make and belong to one setting: they grow line by line and survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignment.errors import UserError


class Artifact:
    """A JSONL file whose first line holds fingerprints of what it was made with.

    Lines are appended as they come, so that interrupted work goes on where it stopped. remedy: what to do about a file
    of another setting, said in the error.
    """

    def __init__(self, path: Path, fingerprints: Mapping[str, str], remedy: str):
        self.path, self.fingerprints, self.remedy = Path(path), dict(fingerprints), remedy

    def read(self) -> list[dict[str, Any]]:
        """The records so far; none when there is no file. A torn last line is dropped.

        Raises UserError when the file was made with something else, naming it and both fingerprints.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_text().split("\n")
        complete = [json.loads(line) for line in lines[:-1] if line]
        if not complete:
            return []
        for name, value in self.fingerprints.items():
            if complete[0].get(name) != value:
                raise UserError(
                    f"{self.path} was made with another {name} (fingerprint {complete[0].get(name)}, this run's is "
                    f"{value}): {self.remedy}"
                )
        return complete[1:]

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records, flushed to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self.path)
        with self.path.open("a") as file:
            if file.tell() == 0:
                file.write(json.dumps(self.fingerprints) + "\n")
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Cut off what a kill has left of a line behind the last whole one."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)

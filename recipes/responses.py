"""The file of responses and verdicts that recipes/verify.py writes: JSON lines which `align verify` reads, and beside
it `FILE.settings.json`, how they were made, so that an interrupted run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.metrics import read_json_lines, replace_file
from alignment.types import Prompt, Rollout, Sampling
from verifiers import Verdict

Record = dict[str, Any]
OWN_COLUMNS = (
    "prompt_id",
    "sample",
    "response",
    "finish_reason",
    "tokens",
    "status",
    "score",
    "detail",
    "reward_terms",
)


def as_record(rollout: Rollout, verdict: Verdict) -> Record:
    """The prompt's row with OWN_COLUMNS, which take the place of columns of the same name."""
    return {
        **rollout.prompt.row,
        "prompt_id": rollout.prompt.id,
        "sample": rollout.index,
        "response": rollout.text,
        "finish_reason": rollout.finish_reason,
        "tokens": len(rollout.token_ids),
        "status": verdict.status,
        "score": verdict.score,
        "detail": verdict.detail,
    }


def settings_of(model: str, verifier: str, samples: int, sampling: Sampling) -> dict[str, Any]:
    """What may not change between the runs that fill one file. model: the fingerprint of its weights and template."""
    return _plain({"model": model, "verifier": verifier, "samples": samples, **asdict(sampling)})


class ResponseFile:
    """Records on disk, a prompt's together. path: None keeps nothing."""

    def __init__(self, path: Path | None, settings: dict[str, Any]):
        self.path, self.settings = path, settings

    def start(self, prompts: Sequence[Prompt]) -> dict[str, list[Record]]:
        """The records of prompts that are already judged, by prompt id. What a killed run left of a prompt that was
        not finished is cut off.

        Raises UserError when the file was made with other settings, from other rows, or by something else.
        """
        if self.path is None:
            return {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or not self.path.stat().st_size:
            replace_file(self._settings_path, json.dumps(self.settings, indent=2) + "\n")
            return {}
        self._check_settings(self.path)
        try:
            records = read_json_lines(self.path)
        except ValueError as error:
            raise UserError(str(error)) from error
        groups: dict[str, list[Record]] = {}
        for number, record in enumerate(records, 1):
            if "prompt_id" not in record:
                raise UserError(f"{self.path}, line {number}: no column 'prompt_id'; move the file away to start anew")
            groups.setdefault(record["prompt_id"], []).append(record)
        whole = {prompt_id: group for prompt_id, group in groups.items() if len(group) == self.settings["samples"]}
        self._check_rows(self.path, whole, prompts)
        replace_file(self.path, "".join(_line(record) for group in whole.values() for record in group))
        return whole

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of one prompt or several, flushed to disk."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())

    @property
    def _settings_path(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.settings.json")

    def _check_settings(self, path: Path) -> None:
        remedy = f"name another file as `responses`, or delete {path} to start anew"
        try:
            made_with = json.loads(self._settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is there, but not {self._settings_path}, which tells how it was made, so this run "
                            f"cannot go on with it: {remedy}") from error  # fmt: skip
        for name, value in self.settings.items():
            if made_with.get(name) != value:
                raise UserError(
                    f"{path} was made with {name} {made_with.get(name)!r}, this run has {value!r}: {remedy}"
                )

    def _check_rows(self, path: Path, groups: dict[str, list[Record]], prompts: Sequence[Prompt]) -> None:
        rows = {prompt.id: prompt.row for prompt in prompts}
        for prompt_id, group in groups.items():
            remedy = "name another file as `responses`, or delete it to start anew"
            if prompt_id not in rows:
                missing = f"{path} has responses to prompt {prompt_id!r}, which is not among this run's prompts"
                raise UserError(f"{missing}: {remedy}")
            row = {name: cell for name, cell in _plain(rows[prompt_id]).items() if name not in OWN_COLUMNS}
            differs = next((name for name, cell in row.items() if group[0].get(name) != cell), None)
            if differs is not None:
                raise UserError(
                    f"{path} was made with another {differs!r} in the row of prompt {prompt_id!r}: {remedy}"
                )


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, default=str) + "\n"


def _plain(value: Any) -> Any:
    """The value as it comes back from a JSON file."""
    return json.loads(json.dumps(dict(value), default=str))

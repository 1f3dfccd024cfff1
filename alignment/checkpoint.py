"""Checkpoints that are whole or absent, and random states.

A checkpoint is written into a folder aside, every file is flushed to disk, a manifest with sizes and checksums is
added, and one rename makes it visible. A process killed at any moment leaves either the old set or the new one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from alignment.distributed import barrier, rank
from alignment.errors import UserError, shorten
from alignment.models.scalar import write_end_token
from alignment.models.trunk import base_of

PREFIX = "step-"
MANIFEST = "manifest.json"


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Make `folder/step-XXXXXXXX` from what `write(path)` puts into it, then drop all but the newest `keep`.

    Called on every rank; `write` too. Raises UserError when the disk is full or not writable: the older checkpoints
    are then untouched.
    """
    final = folder / f"{PREFIX}{step:08d}"
    aside = folder / f".writing-{final.name}"
    try:
        if rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        barrier()
        write(aside)
        barrier()
        if rank() == 0:
            _seal(aside)
            if final.exists():
                _remove(final)
            os.rename(aside, final)
            _fsync(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = writing_problem(error, folder)
        if problem is None:
            raise
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"checkpoint of step {step} could not be written to {folder}: {problem}. Free space or choose another "
            "output_dir, then start the same command again: it goes on from the newest checkpoint."
        ) from error
    if rank() == 0:
        for old in checkpoints(folder)[:-keep]:
            _remove(old)
    barrier()
    return final


def check_folder(output_dir: str) -> None:
    """Make the folder of a run. Raises UserError when files cannot be written there, before anything is computed."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"output_dir: nothing can be written to {shorten(output_dir)} ({problem}); choose another folder"
        ) from error


def write_model(path: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A plain transformers checkpoint (or a PEFT adapter) with its tokenizer; an older one at `path` is replaced when
    the new one is complete. Raises UserError when the disk is full or not writable."""
    aside = path.with_name(f".writing-{path.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(str(aside))
        if isinstance(model, PeftModel):
            write_end_token(base_of(model).config, aside)
        tokenizer.save_pretrained(aside)
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"the model could not be written to {path}: {writing_problem(error, path.parent)}. Free space or "
            "choose another output_dir, then start the same command again: it goes on from the newest checkpoint."
        ) from error


def writing_problem(error: Exception, folder: Path) -> str | None:
    """Why a file could not be written, None when the error is about something else. On a full disk safetensors raises
    an error of its own and torch a RuntimeError about positions in its archive."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, SafetensorError) and "inline_container" not in str(error):
        return None
    text = str(error).splitlines()[0]
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), None)
    return text if there is None else f"{text} ({shutil.disk_usage(there).free:,} bytes are free there)"


def set_aside_newer(folder: Path, step: int) -> None:
    """Move checkpoints of steps after `step` into `superseded-…`: the run starts or goes on before them, and they must
    neither crowd out its own nor be resumed. Also removes what a kill left half written or half deleted."""
    if rank() == 0 and folder.is_dir():
        for leftover in folder.glob(f".*-{PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        newer = [path for path in checkpoints(folder) if int(path.name.removeprefix(PREFIX)) > step]
        if newer:
            aside = folder / f"superseded-{time.time_ns()}"
            aside.mkdir()
            for path in newer:
                os.rename(path, aside / path.name)
    barrier()


def checkpoints(folder: Path) -> list[Path]:
    """All visible checkpoints, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir())


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are named through `say` and passed over."""
    for path in reversed(checkpoints(folder)):
        problem = find_damage(path)
        if problem is None:
            return path
        say(f"checkpoint {path} is damaged ({problem}); falling back to the one before it")
    if any(checkpoints(folder)):
        say(f"no checkpoint in {folder} is sound: starting anew; the damaged ones are kept in a folder superseded-…")
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable"
    for name, (size, checksum) in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _checksum(file) != checksum:
            return f"the checksum of {name} is wrong"
    return None


def random_states() -> dict[str, Any]:
    """The state of every global random generator of this process."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _seal(path: Path) -> None:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(path)): (p.stat().st_size, _checksum(p)) for p in files}
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for p in [*files, path / MANIFEST, *(d for d in path.rglob("*") if d.is_dir()), path]:
        _fsync(p)


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Rename first: a kill while deleting must not leave a half checkpoint under a good name."""
    doomed = path.with_name(f".deleting-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)

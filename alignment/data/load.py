"""Rows on disk: local files and directories, or a data set of the Hugging Face hub."""

from __future__ import annotations

import difflib
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.metrics import replace_file

LINE_FORMATS = (".jsonl", ".jsonl.gz", ".json.gz", ".ndjson")
TABLE_FORMATS = (".parquet", ".csv")
FORMATS = (*LINE_FORMATS, ".json", *TABLE_FORMATS)


def load_rows(source: str, split: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a data set, at most `limit` of them.

    source: a file (.jsonl, .jsonl.gz, .json, .parquet, .csv), a directory written by `datasets` or holding such files,
    or a data set of the hub, as `owner/name` or `owner/name:config`.
    split: needed where there are several besides `train`; a single file has only `train`.

    Raises UserError when there is no such source, when it cannot be read (with file and line) or when it has no rows.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if split not in (None, "train"):
            raise UserError(f"{source} is a single file and has no split {split!r}: name the file of that split")
        rows = _read_file(path, limit)
    elif path.is_dir():
        rows = _read_directory(path, split, limit)
    elif _looks_like_a_path(source):
        raise UserError(_no_such_file(path))
    else:
        rows = _read_hub(source, split, limit)
    if not rows:
        raise UserError(f"{source} has no rows")
    return rows


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines; a crash leaves the old file or the new one, whole."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def require_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str], source: str) -> None:
    """Raises UserError for the first row that lacks one of the columns (or has None there). Rows count from 1."""
    for number, row in enumerate(rows, 1):
        missing = [name for name in names if row.get(name) is None]
        if missing:
            raise UserError(f"{source}, row {number}: no column {missing[0]!r}{_columns_hint(row, missing[0])}")


def _columns_hint(row: Mapping[str, Any], name: str) -> str:
    close = difflib.get_close_matches(name, map(str, row), n=1)
    columns = f"its columns are {sorted(row)}"
    return f"; did you mean {close[0]!r}? ({columns})" if close else f"; {columns}"


def _read_file(path: Path, limit: int | None) -> list[dict[str, Any]]:
    name = path.name.lower()
    if name.endswith(LINE_FORMATS):
        return _take(_json_lines(path), limit)
    if name.endswith(".json"):
        return _read_json(path, limit)
    if name.endswith(TABLE_FORMATS):
        return _read_table(path, limit)
    raise UserError(f"{path}: unknown format, known are {', '.join(FORMATS)}")


def _take(rows: Iterator[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    return list(itertools.islice(rows, limit))


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _as_row(json.loads(line), f"{path}, line {number}", "\\ud" in line.lower())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, numbers of thousands of digits, thousands of brackets
        raise UserError(
            f"{path}, line {number + isinstance(error, UnicodeDecodeError)}: unreadable ({error})"
        ) from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: unreadable behind line {number} ({error})") from error


def _as_row(value: Any, place: str, surrogates: bool) -> dict[str, Any]:
    """surrogates: whether the text has escapes that may be halves of a character; JSON can hold one, UTF-8 cannot."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: a row must be a JSON object, got {type(value).__name__}")
    if surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise UserError(
                f"{place}: {half} is half of a character (a lone surrogate), which is no text: repair or remove it"
            ) from error
    return value


def _read_json(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """A JSON list of rows; anything else is read as one row per line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.lstrip().startswith("["):
            return _take(_json_lines(path), limit)
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: unreadable ({error})") from error
    surrogates = "\\ud" in text.lower()
    return [_as_row(value, f"{path}, row {number}", surrogates) for number, value in enumerate(values[:limit], 1)]


def _read_table(path: Path, limit: int | None) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".csv":
            table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
        else:
            table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: {error}") from error
    return table.slice(0, limit).to_pylist()


def _read_directory(path: Path, split: str | None, limit: int | None) -> list[dict[str, Any]]:
    import datasets

    saved = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
    try:
        found = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: a directory that `datasets` cannot read ({error})") from error
    return _select(found, str(path), split, limit)


def _read_hub(source: str, split: str | None, limit: int | None) -> list[dict[str, Any]]:
    import datasets

    name, _, config = source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        hint = f" Write {name}:CONFIG to choose one." if "Config name is missing" in str(error) else ""
        raise UserError(
            f"{source} is no file or directory here, and the hub does not give it as a data set: {error}{hint}"
        ) from error
    return _select(found, source, split, limit)


def _select(found: Any, source: str, split: str | None, limit: int | None) -> list[dict[str, Any]]:
    if isinstance(found, Mapping):
        names = list(found)
        chosen = split or (names[0] if len(names) == 1 else "train")
        if chosen not in found:
            raise UserError(f"{source} has no split {chosen!r}, its splits are {names}: set `split`")
        found = found[chosen]
    elif split not in (None, "train", str(found.split)):
        raise UserError(f"{source} holds one split ({found.split}), not {split!r}")
    return found.select(range(min(len(found), limit))).to_list() if limit is not None else found.to_list()


def _looks_like_a_path(source: str) -> bool:
    return source.lower().endswith(FORMATS) or source.startswith((".", "/", "~")) or source.count("/") > 1


def _no_such_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"no such file: {path} (there is no directory {folder})"
    names = [p.name for p in folder.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=3)
    if close:
        return f"no such file: {path}; did you mean {' or '.join(str(folder / name) for name in close)}?"
    known = sorted(name for name in names if name.lower().endswith(FORMATS))[:10]
    return f"no such file: {path}; data files in {folder}: {', '.join(known) or 'none'}"

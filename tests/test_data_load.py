import gzip
import json

import datasets
import pytest

from alignment.data.load import load_rows, require_columns
from alignment.errors import UserError

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(5)]


def write_lines(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_one_object_per_line(tmp_path, name):
    source = write_lines(tmp_path / name, ROWS)
    assert load_rows(source) == ROWS
    assert load_rows(source, limit=2) == ROWS[:2]
    assert load_rows(source, split="train", limit=99) == ROWS


def test_rows_of_different_shapes_stay_as_written(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "x"}]}, {"text": "y", "tools": [{"a": {"b": 1}}]}]
    assert load_rows(write_lines(tmp_path / "a.jsonl", rows)) == rows


def test_a_json_list(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    assert load_rows(str(tmp_path / "a.json"), limit=3) == ROWS[:3]


def test_parquet_and_csv(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert load_rows(str(tmp_path / "a.parquet"), limit=4) == ROWS[:4]
    (tmp_path / "a.csv").write_text('question,answer\n"two\nlines, one cell",4\nplain,5\n')
    assert load_rows(str(tmp_path / "a.csv")) == [
        {"question": "two\nlines, one cell", "answer": 4},
        {"question": "plain", "answer": 5},
    ]


def test_directories_saved_by_datasets(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert load_rows(str(tmp_path / "one"), limit=2) == ROWS[:2]
    datasets.DatasetDict({"train": data, "test": data.select([4])}).save_to_disk(tmp_path / "two")
    assert load_rows(str(tmp_path / "two")) == ROWS
    assert load_rows(str(tmp_path / "two"), split="test") == ROWS[4:]
    with pytest.raises(UserError, match=r"no split 'validation', its splits are \['train', 'test'\]"):
        load_rows(str(tmp_path / "two"), split="validation")


def test_a_missing_file_is_named_with_the_closest_one(tmp_path):
    write_lines(tmp_path / "gsm8k_train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"gsm8k_trian.jsonl; did you mean .*gsm8k_train.jsonl\?"):
        load_rows(str(tmp_path / "gsm8k_trian.jsonl"))
    with pytest.raises(UserError, match=r"data files in .*: gsm8k_train\.jsonl"):
        load_rows(str(tmp_path / "zzz.parquet"))
    with pytest.raises(UserError, match="there is no directory"):
        load_rows(str(tmp_path / "nowhere" / "a.jsonl"))


def test_an_unreadable_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: not valid JSON"):
        load_rows(str(tmp_path / "a.jsonl"))
    assert load_rows(str(tmp_path / "a.jsonl"), limit=1) == [{"a": 1}]
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: a row must be a JSON object, got list"):
        load_rows(str(tmp_path / "b.jsonl"))


def test_a_cut_off_or_foreign_file_is_one_clear_error(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 200))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain text")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff\xfe"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    (tmp_path / "a.xml").write_text("<rows/>")
    for name in ("cut.jsonl.gz", "not.jsonl.gz", "bytes.jsonl", "bad.parquet", "a.xml"):
        with pytest.raises(UserError, match=name):
            load_rows(str(tmp_path / name))


def test_no_rows_and_a_split_of_a_file_are_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        load_rows(str(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match="no split 'test'"):
        load_rows(write_lines(tmp_path / "b.jsonl", ROWS), split="test")


def test_a_name_that_the_hub_does_not_give_is_one_clear_error(monkeypatch):
    def refuse(name, config=None):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="owner/nothing is no file or directory here"):
        load_rows("owner/nothing")


def test_a_hub_name_may_carry_a_config(monkeypatch):
    asked = []

    def give(name, config=None):
        asked.append((name, config))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", give)
    assert load_rows("owner/name:main", limit=1) == ROWS[:1]
    assert asked == [("owner/name", "main")]


def test_a_missing_column_names_the_row_and_the_columns_there_are():
    require_columns(ROWS, ["question", "answer"], "x.jsonl")
    with pytest.raises(UserError, match=r"x.jsonl, row 6: no column 'answer'; .*\['question'\]"):
        require_columns([*ROWS, {"question": "q"}], ["question", "answer"], "x.jsonl")
    with pytest.raises(UserError, match="did you mean 'question'"):
        require_columns(ROWS, ["qestion"], "x.jsonl")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "\\ud800"}', "line 2: '\\\\ud800' is half of a character"),
        ("[" * 100_000, "line 2: unreadable"),
        ('{"n": ' + "9" * 5000 + "}", "line 2: unreadable"),
    ],
)
def test_lines_that_json_takes_and_nothing_else_are_named(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "\\ud83d\\ude42"}\n' + line + "\n")
    with pytest.raises(UserError, match=problem):
        load_rows(str(path))
    assert load_rows(str(path), limit=1) == [{"text": "🙂"}]

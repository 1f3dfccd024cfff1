"""The file of soft targets: compact, exact but for float16, refused when it belongs to something else, safe to kill."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.algorithms.teachers import StoredTargets, Teachers
from alignment.data.soft_targets import SoftTargetFile
from alignment.errors import UserError
from tests.training_distill import REAL, rows, teacher, teachers

K = 3


def record(key: str, n: int, seed: int = 0):
    rng = np.random.default_rng([seed, n])
    log_p = np.log(rng.dirichlet(np.ones(K + 1), n)).astype(np.float32)
    return key.ljust(16, "-"), rng.integers(0, 150_000, (n, K)).astype(np.int32), log_p


RECORDS = [record("a", 4), record("b", 1), record("c", 0), record("d", 1000)]


def make(path, k: int = K, teacher: str = "t") -> SoftTargetFile:
    return SoftTargetFile(path, k, {"teacher": teacher}, "delete it")


def check(file: SoftTargetFile, records=RECORDS) -> None:
    assert len(file) == len(records)
    for key, ids, log_p in records:
        assert key in file
        found_ids, found = file.read(key)
        assert np.array_equal(found_ids, ids)
        assert np.allclose(found, log_p, rtol=1e-3, atol=1e-3)
        assert np.allclose(np.exp(found).sum(-1), 1, atol=1e-6)


def test_records_come_back_but_for_float16(tmp_path):
    file = make(tmp_path / "x.bin")
    assert len(file) == 0
    file.append(RECORDS[:2])
    file.append(RECORDS[2:])
    check(file)
    check(make(tmp_path / "x.bin"))
    with pytest.raises(KeyError):
        file.read("e".ljust(16, "-"))


def test_a_token_takes_six_bytes_per_candidate(tmp_path):
    make(tmp_path / "x.bin").append([record("d", 1000)])
    assert (tmp_path / "x.bin").stat().st_size == pytest.approx(1000 * (6 * K + 2), rel=0.01)


def test_impossible_outcomes_survive(tmp_path):
    """The floor of log-probabilities is within float16."""
    log_p = np.array([[0.0, -1e4, -1e4, -1e4]], dtype=np.float32)
    file = make(tmp_path / "x.bin")
    file.append([("k" * 16, np.array([[1, 2, 3]], np.int32), log_p)])
    found = file.read("k" * 16)[1]
    assert found[0, 0] == 0
    assert np.exp(found[0, 1:]).max() == 0


def test_a_kill_while_writing_loses_the_last_record_only(tmp_path):
    path = tmp_path / "x.bin"
    make(path).append(RECORDS)
    whole = path.read_bytes()
    lengths = []
    for end in [*range(0, 200, 7), len(whole) - 5000, len(whole) - 1]:
        path.write_bytes(whole[:end])
        file = make(path)
        lengths.append(len(file))
        file.append([r for r in RECORDS if r[0] not in file])
        check(make(path))
        assert path.stat().st_size == len(whole)
    assert sorted(set(lengths)) == [0, 1, 2, 3]


def test_what_another_process_adds_is_seen_after_a_refresh(tmp_path):
    writer, reader = make(tmp_path / "x.bin"), make(tmp_path / "x.bin")
    for known in (1, 4):
        writer.append(RECORDS[len(writer) : known])
        reader.refresh()
        check(reader, RECORDS[:known])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 4}, "teacher_top_k 3, this run has 4"), ({"teacher": "u"}, "teacher t, this run has u: delete it")],
)
def test_a_file_of_another_setting_is_refused(tmp_path, settings, message):
    make(tmp_path / "x.bin").append(RECORDS)
    with pytest.raises(UserError, match=message):
        make(tmp_path / "x.bin", **settings)


@pytest.mark.parametrize("content", [b"\x00\xff" * 500, b'{"text": "a"}\n{"text": "b"}\n', b"[1, 2]\n", b"no line"])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match="delete it"):
        make(tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == content


def test_a_damaged_record_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "x.bin"
    make(path).append(RECORDS)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    file = make(path)
    file.read(RECORDS[0][0])
    with pytest.raises(UserError, match="damaged at byte"):
        file.read(RECORDS[3][0])


# --- filled by teachers -----------------------------------------------------------------------------------------------


def test_rows_are_asked_about_once(tmp_path):
    """A second start asks about new rows only; a row under another task's teacher is a new one."""
    trees, tasks = rows()
    said: list[str] = []
    both = teachers(top_k=K)
    first = StoredTargets(tmp_path / "x.bin", both)
    first.fill(trees[:5], tasks[:5], said.append)
    again = StoredTargets(tmp_path / "x.bin", teachers(top_k=K))
    again.fill(trees, tasks, said.append)
    again.fill(trees, tasks, said.append)
    assert said == ["soft targets: 5/5 rows", "soft targets: 8/8 rows"]
    assert all(set(tree.segments[0].columns) == {"weights"} for tree in trees)
    again.fill(trees[:1], ["code"], said.append)
    assert said[2:] == ["soft targets: 1/1 rows"]
    with pytest.raises(UserError, match="lacks a row"):
        again.add_targets(trees[1:2], ["math"])


def test_other_teachers_are_refused(tmp_path):
    trees, tasks = rows(2)
    StoredTargets(tmp_path / "x.bin", Teachers({"default": teacher()}, REAL, K)).fill(trees, tasks, lambda text: None)
    with pytest.raises(UserError, match="another soft_targets_file"):
        StoredTargets(tmp_path / "x.bin", Teachers({"default": teacher(10)}, REAL, K))
    with pytest.raises(UserError, match=r"divergence_temperature 1\.0, this run has 2\.0"):
        StoredTargets(tmp_path / "x.bin", Teachers({"default": teacher()}, REAL, K, 2.0))
    with pytest.raises(UserError, match="teacher_top_k above 0"):
        StoredTargets(tmp_path / "x.bin", Teachers({"default": teacher()}, REAL))

"""Prompt orders and the file the first order comes from."""

import json

import pytest

from alignment.data.curriculum import Curriculum, PromptScore, ScoreFile
from alignment.errors import UserError
from alignment.fingerprint import fingerprint
from alignment.types import Prompt, Rollout

IDS = [f"p{i}" for i in range(6)]
PRINTS = {"model": "m", "sampling": "s", "reward": "r"}


def score(passes, n=8):
    return PromptScore.of([1.0] * passes + [0.0] * (n - passes))


def test_score_of_hand_computed_samples():
    assert PromptScore.of([1.0, 0.0, 0.0, None, 1.0]) == PromptScore(0.5, 0.25, 0.5, 4)
    assert PromptScore.of([None, float("nan")]) is None


def test_highest_variance_comes_first_and_unknown_prompts_last():
    scores = {"p0": score(8), "p1": score(4), "p2": score(1), "p3": score(3), "p4": score(0)}
    taken = Curriculum(IDS, "variance", 0, scores).take(6)
    assert taken[:3] == [1, 3, 2]
    assert set(taken[3:5]) == {0, 4}  # no variance at all
    assert taken[5] == 5


def test_order_follows_the_scores_seen_while_training_from_the_next_epoch_on():
    curriculum = Curriculum(IDS, "variance", 0, {i: score(4 if i == "p0" else 0) for i in IDS})
    first = curriculum.take(6)
    assert first[0] == 0
    curriculum.observe("p0", score(8))
    curriculum.observe("p3", score(5))
    assert curriculum.take(1) == [3]


def test_pass_rate_band_keeps_two_to_five_of_eight():
    scores = {i: score(k) for i, k in zip(IDS, [0, 1, 2, 5, 6, 8], strict=True)}
    curriculum = Curriculum(IDS, "pass_rate_band", 0, scores, (0.25, 0.625))
    assert sorted(curriculum.take(2)) == [2, 3]
    assert sorted(curriculum.take(2)) == [2, 3]
    with pytest.raises(UserError, match="widen the band"):
        Curriculum(IDS[:1], "pass_rate_band", 0, {"p0": score(8)}, (0.25, 0.625))


def test_a_band_that_runs_empty_is_filled_with_the_nearest():
    """Training moves prompts out of the band; a step still needs as many different ones as it takes."""
    scores = {i: score(k) for i, k in zip(IDS, [0, 1, 2, 5, 6, 8], strict=True)}
    curriculum = Curriculum(IDS, "pass_rate_band", 0, scores, (0.25, 0.625), least=4)
    assert len(curriculum) == 4 and sorted(curriculum.take(4)) == [1, 2, 3, 4]
    for prompt in ("p2", "p3"):
        curriculum.observe(prompt, score(8))
    assert sorted(curriculum.take(4)[:2]) == [1, 4]


def test_prompts_that_nothing_could_score_stay_in_under_a_band_and_come_last_by_variance():
    scores = {"p0": score(4), "p1": PromptScore(0.0, 0.0, 0.0, 0), "p2": score(8)}
    assert sorted(Curriculum(IDS[:3], "pass_rate_band", 0, scores, (0.25, 0.75)).take(2)) == [0, 1]
    assert Curriculum(IDS[:3], "variance", 0, scores).take(3) == [0, 2, 1]


def test_what_passes_is_said_by_the_first_reward():
    def rollout(verifier, bonus):
        return Rollout(Prompt("p", [], [1]), 0, [], [], "", "stop", 0, reward=verifier + bonus,
                       reward_terms={"math": verifier, "format": bonus})  # fmt: skip

    assert PromptScore.of_rollouts([rollout(0.0, 1.0), rollout(0.0, 1.0)]) == PromptScore(1.0, 0.0, 0.0, 2)
    assert PromptScore.of_rollouts([rollout(1.0, -0.5), rollout(0.0, 0.0)]).pass_rate == 0.5


def test_a_step_takes_no_prompt_twice_not_over_several_rounds_either():
    curriculum = Curriculum(IDS, "random", 0)
    curriculum.take(4)
    first = curriculum.take(4)  # two of this epoch and two of the next
    more = curriculum.take(3, first)
    assert len(set(first + more)) == len(first) + len(more) == 6  # and then there is no other
    assert curriculum.take(1) != []


def test_each_epoch_visits_every_prompt_once_in_another_order():
    curriculum = Curriculum(IDS, "random", 3)
    a, b = curriculum.take(6), curriculum.take(6)
    assert sorted(a) == sorted(b) == list(range(6))
    assert a != b


def test_state_continues_in_the_middle_of_an_epoch():
    curriculum = Curriculum(IDS, "variance", 0, {"p2": score(4)})
    curriculum.take(4)
    curriculum.observe("p1", score(3))
    other = Curriculum(IDS, "variance", 0)
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    assert other.take(9) == curriculum.take(9)


def test_no_prompt_is_an_error():
    with pytest.raises(UserError, match="no prompt"):
        Curriculum([], "random", 0)


def test_score_file_survives_a_torn_line_and_goes_on(tmp_path):
    file = ScoreFile(tmp_path / "scores.jsonl", PRINTS)
    assert file.read() == {}
    file.append({"a": score(1), "b": score(4)})
    with file.file.path.open("a") as f:
        f.write('{"id": "c", "mea')
    assert set(file.read()) == {"a", "b"}
    file.append({"c": score(2)})
    assert file.read() == {"a": score(1), "b": score(4), "c": score(2)}


def test_score_file_of_another_model_is_refused_with_both_fingerprints(tmp_path):
    ScoreFile(tmp_path / "s.jsonl", PRINTS).append({"a": score(1)})
    with pytest.raises(UserError, match=r"another model .fingerprint m, this run's is other"):
        ScoreFile(tmp_path / "s.jsonl", {**PRINTS, "model": "other"}).read()
    assert fingerprint(1, "a") != fingerprint(1, "b")

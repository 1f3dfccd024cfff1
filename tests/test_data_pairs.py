"""Comparisons from votes and from scored responses."""

from collections import Counter

import pytest

from alignment.data.pairs import pairs_from_votes, vote_score
from alignment.data.response_groups import groups_from_responses, is_response_record
from alignment.errors import UserError
from tests.responses import texts


def answers(*votes, accepted=None):
    return [{"text": f"a{i}", "upvotes": n, "accepted": i == accepted} for i, n in enumerate(votes)]


def test_scores_of_votes_by_hand():
    assert [vote_score(n, False) for n in (-1, 0, 1, 2, 3, 4, 5, 6, 10, 22, 23)] == [-1, 0, 1, 2, 2, 2, 3, 3, 3, 5, 5]
    assert [vote_score(n, True) for n in (-5, 0, 3)] == [0, 1, 3]


def test_every_two_answers_with_different_scores_make_a_pair_and_ties_none():
    """Votes 0, 10, 11, -2 have scores 0, 3, 4 (11 -> log2(12) = 3.58) and -1."""
    rows, counts = pairs_from_votes([{"question": "Why?", "answers": answers(0, 10, 11, -2, 12)}], 99, seed=0)
    assert sorted(f"{better}>{worse}" for better, worse in texts(rows)) == [
        *("a0>a3", "a1>a0", "a1>a3", "a2>a0", "a2>a1", "a2>a3", "a4>a0", "a4>a1", "a4>a3")
    ]
    assert (counts.pairs, counts.ties, counts.answers, counts.over_cap) == (9, 1, 5, 0)
    assert rows[0]["prompt"] == [{"role": "user", "content": "Why?"}]
    assert rows[0]["chosen"][0]["role"] == "assistant"


def test_acceptance_breaks_a_tie():
    rows, counts = pairs_from_votes([{"question": "Why?", "answers": answers(3, 3, accepted=1)}], 9, seed=0)
    assert texts(rows) == [("a1", "a0")]
    assert counts.ties == 0


def test_the_cap_draws_pairs_without_bias_and_by_the_seed():
    question = {"question": "Why?", "answers": answers(0, 1, 3, 7, 15)}  # scores 0 … 4: ten pairs
    rows, counts = pairs_from_votes([question], 3, seed=5)
    assert (len(rows), counts.over_cap) == (3, 7)
    assert rows == pairs_from_votes([question], 3, seed=5)[0]
    drawn = Counter(pair for seed in range(400) for pair in texts(pairs_from_votes([question], 3, seed)[0]))
    assert len(drawn) == 10
    assert all(80 < times < 160 for times in drawn.values())  # 120 expected, standard deviation 9


def test_a_questions_pairs_do_not_depend_on_the_other_questions():
    question = {"question": "Why?", "answers": answers(0, 1, 3, 7, 15)}
    other = {"question": "How?", "answers": answers(5, 1)}
    alone = texts(pairs_from_votes([other, question], 3, seed=1)[0])[1:]
    assert alone == texts(pairs_from_votes([{**other, "answers": answers(1, 1)}, question], 3, seed=1)[0])


def test_questions_without_a_pair_and_repeated_answers_are_counted():
    rows = [
        {"question": "one answer", "answers": answers(3)},
        {"question": "all alike", "answers": answers(2, 2)},
        {"question": "twice", "answers": [*answers(5, 1), {"text": "a0", "upvotes": 1}]},
    ]
    pairs, counts = pairs_from_votes(rows, 9, seed=0)
    assert (counts.questions, counts.without_pair, counts.repeated, counts.pairs) == (3, 2, 1, len(pairs))
    assert "2 questions without a pair" in counts.summary()


def test_scores_that_are_there_already_are_taken():
    rows = [
        {"question": "Why?", "answers": [{"text": "a", "pm_score": 2, "selected": True}, {"text": "b", "pm_score": 2}]}
    ]
    assert pairs_from_votes(rows, 9, 0)[1].ties == 1
    both = [{"text": "a", "pm_score": 6, "upvotes": 40}, {"text": "b", "pm_score": 5, "upvotes": 40, "accepted": True}]
    pairs, counts = pairs_from_votes([{"question": "Why?", "answers": both}], 9, 0)
    assert (texts(pairs), counts.ties) == ([("a", "b")], 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?"}, "a list `answers`"),
        ({"question": "Why?", "answers": [{"upvotes": 3}]}, "answer 1 must be an object with a `text`"),
        ({"question": "Why?", "answers": [{"text": "a"}]}, "answer 1 has neither `upvotes` nor `pm_score`"),
        ({"question": "Why?", "answers": [{"text": "a", "upvotes": 1.5}]}, "must be a whole number, got 1.5"),
    ],
)
def test_malformed_questions_are_named(row, message):
    with pytest.raises(UserError, match="row 2: ") as caught:
        pairs_from_votes([{"question": "Why?", "answers": answers(1, 2)}, row], 9, 0)
    assert message in str(caught.value)


def record(prompt_id, response, score, finish_reason="stop", **columns):
    return {"prompt_id": prompt_id, "response": response, "score": score, "finish_reason": finish_reason, **columns}


def test_responses_become_groups_and_flat_ones_are_dropped():
    records = [
        record("p", "5", 1.0, question="2 + 3?"),
        record("q", "1", 0.0, prompt="text:"),
        record("p", "6", 0.0, question="2 + 3?"),
        record("q", "2", 0.0, prompt="text:"),
        record("p", "five", 1.0, question="2 + 3?"),
        record("r", "x", 1.0, messages=[{"role": "user", "content": "y"}]),
    ]
    assert all(map(is_response_record, records))
    rows, counts = groups_from_responses(records)
    question = [{"role": "user", "content": "2 + 3?"}]
    assert rows == [{"prompt": question, "completions": ["5", "6", "five"], "labels": [1.0, 0.0, 1.0]}]
    assert (counts.groups, counts.flat, counts.responses) == (1, 2, 6)


def test_unscored_truncated_and_repeated_responses_are_left_out():
    records = [
        record("p", "5", 1.0, prompt="a"),
        record("p", "5", 1.0, prompt="a"),
        record("p", "6", None, prompt="a"),
        record("p", "7 and", 0.0, "length", prompt="a"),
        record("p", "8", 0.0, prompt="a"),
    ]
    rows, counts = groups_from_responses(records)
    assert rows[0]["completions"] == ["5", "8"]
    assert (counts.unscored, counts.truncated, counts.repeated) == (1, 1, 1)
    with pytest.raises(UserError, match="row 1: needs `messages`, `prompt` or `question`"):
        groups_from_responses([record("p", "5", 1.0)])

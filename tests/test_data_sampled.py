"""Pairs and accepted rows from sampled responses: what may enter them, how often, and what is counted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from alignment.data.response_groups import groups_from_responses
from alignment.data.sampled import Response, accepted_rows, pair_rows, sort_responses, whole_response
from alignment.types import Prompt
from recipes.generate import GenerateRecipe, write_outputs
from tests.responses import texts

CHAT = Prompt("p", [{"role": "user", "content": "2 + 3?"}], [1], {"id": "p", "answer": "5", "tools": [{"name": "f"}]})
TEXT = Prompt("t", [], [1], {"prompt": "2 + 3 ="})


def by_verdict(responses, prompt=CHAT, pass_score=1.0, seed=0):
    counts: Counter[str] = Counter()
    return sort_responses(prompt, responses, pass_score, seed, counts), counts


def grid(passed: int, failed: int, **settings):
    responses = [Response(f"pass {i}", 1.0) for i in range(passed)]
    responses += [Response(f"fail {i}", 0.0) for i in range(failed)]
    return by_verdict(responses, **settings)[0]


def test_unscored_truncated_and_repeated_responses_enter_nothing_and_are_counted():
    responses = [
        Response("right", 1.0),
        Response("right", 1.0),
        Response("right but cut", 1.0, finished=False),
        Response("wrong", 0.0),
        Response("partly", 0.5),
        Response("wrong and cut", 0.0, finished=False),
        Response("broken verifier", None),
    ]
    verdict, counts = by_verdict(responses)
    assert [r.text for r in verdict.passed] == ["right"]
    assert {r.text for r in verdict.failed} == {"wrong", "partly"}
    expected = {"prompts": 1, "responses": 7, "unscored": 1, "passed": 3, "failed": 3, "truncated": 2, "repeated": 1}
    assert {name: counts[name] for name in expected} == expected
    assert counts["prompts_without_pass"] == counts["prompts_without_fail"] == 0


def test_prompts_with_one_verdict_only_give_no_pair_and_are_counted():
    counts: Counter[str] = Counter()
    all_right = sort_responses(CHAT, [Response("a", 1.0), Response("b", 1.0)], 1.0, 0, counts)
    all_wrong = sort_responses(CHAT, [Response("a", 0.0)], 1.0, 0, counts)
    assert pair_rows(all_right, 4) == pair_rows(all_wrong, 4) == []
    assert len(accepted_rows(all_right, 4)) == 2
    assert (counts["prompts_without_pass"], counts["prompts_without_fail"]) == (1, 1)


def test_the_score_that_passes_is_a_setting():
    responses = [Response("a", 0.4), Response("b", 0.6), Response("c", -2.0)]
    assert [r.text for r in by_verdict(responses, pass_score=0.5)[0].passed] == ["b"]
    assert {r.text for r in by_verdict(responses, pass_score=0.4)[0].passed} == {"a", "b"}


@pytest.mark.parametrize(("passed", "failed"), [(1, 1), (2, 3), (4, 2), (3, 3), (6, 4), (1, 5)])
def test_pairs_are_different_and_use_the_responses_evenly(passed, failed):
    everything = texts(pair_rows(grid(passed, failed), 100))
    assert len(everything) == len(set(everything)) == passed * failed
    for wanted in range(1, passed * failed + 1):
        some = texts(pair_rows(grid(passed, failed), wanted))
        assert some == everything[:wanted]
        for side, size in ((0, passed), (1, failed)):
            used = Counter(pair[side] for pair in some)
            assert max(used.values()) - (min(used.values()) if len(used) == size else 0) <= 1


def test_the_choice_is_seeded_and_differs_between_prompts():
    first = texts(pair_rows(grid(6, 6), 3))
    assert first == texts(pair_rows(grid(6, 6), 3))
    assert first != texts(pair_rows(grid(6, 6, seed=1), 3))
    other = Prompt("q", CHAT.messages, [1], {})
    assert first != texts(pair_rows(grid(6, 6, prompt=other), 3))


def test_rows_of_a_conversation_are_in_trls_format_and_keep_what_the_template_needs():
    (row,) = pair_rows(grid(1, 1), 1)
    assert row == {
        "prompt_id": "p",
        "prompt": [{"role": "user", "content": "2 + 3?"}],
        "chosen": [{"role": "assistant", "content": "pass 0"}],
        "rejected": [{"role": "assistant", "content": "fail 0"}],
        "tools": [{"name": "f"}],
        "chosen_score": 1.0,
        "rejected_score": 0.0,
    }
    (row,) = accepted_rows(grid(1, 1), 1)
    assert row["completion"] == [{"role": "assistant", "content": "pass 0"}]
    assert row["prompt"] == CHAT.messages
    assert row["score"] == 1.0


def test_rows_of_a_text_are_texts():
    (row,) = pair_rows(grid(1, 1, prompt=TEXT), 1)
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("2 + 3 =", "pass 0", "fail 0")
    assert accepted_rows(grid(1, 1, prompt=TEXT), 1)[0]["completion"] == "pass 0"


def test_a_thinking_block_that_the_prompt_opened_is_written_with_its_opening_tag(tmp_path):
    prompt = Prompt("p", CHAT.messages, [1], {"id": "p", "think_opened": True})
    records = [
        {"prompt_id": "p", "response": f"hm</think>{n}", "score": float(n == 5), "finish_reason": "stop", **row}
        for n in (5, 6)
        for row in [{**prompt.row, "prompt": CHAT.messages}]
    ]
    assert whole_response(records[0]) == "<think>\nhm</think>5"
    assert whole_response({"response": "<think>hm</think>5"}) == "<think>hm</think>5"
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("pairs", "accepted")}
    recipe = GenerateRecipe("rows.jsonl", responses="r.jsonl", **{name: str(path) for name, path in paths.items()})
    write_outputs(recipe, [prompt], {"p": records})
    (pair,), (accepted,) = ([json.loads(line) for line in path.open()] for path in paths.values())
    assert pair["chosen"][0]["content"] == "<think>\nhm</think>5"
    assert pair["rejected"][0]["content"] == "<think>\nhm</think>6"
    assert accepted["completion"][0]["content"] == "<think>\nhm</think>5"
    (group,), _ = groups_from_responses(records)
    assert group["completions"] == ["<think>\nhm</think>5", "<think>\nhm</think>6"]

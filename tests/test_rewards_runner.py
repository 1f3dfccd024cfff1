"""The reward runner: TRL's arguments, weighted sums, and rewards that raise, hang or return nonsense."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rewards import RewardRunner, get_reward


@dataclass
class P:
    messages: list
    row: dict


@dataclass
class R:
    prompt: P
    text: str
    token_ids: list = field(default_factory=list)
    reward: float | None = 7.0
    reward_terms: dict = field(default_factory=dict)


def rollouts(*texts, rows=None):
    chat = [{"role": "user", "content": "q"}]
    return [R(P(chat, rows[i] if rows else {"answer": "2"}), text, [i]) for i, text in enumerate(texts)]


def ones(prompts, completions, **columns):
    return [1.0] * len(prompts)


def run(*rewards, timeout_s=20.0, texts=("2", "3")):
    batch = rollouts(*texts)
    metrics = RewardRunner(list(rewards), timeout_s)(batch)
    return batch, metrics


def test_a_reward_sees_trl_arguments():
    seen = {}

    def spy(prompts, completions, completion_ids, **columns):
        seen.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids)
        return [0.0] * len(prompts)

    batch = rollouts("a", "b", rows=[{"answer": "1", "prompt": "q", "unit": "cm"}, {"answer": "2", "completions": "x"}])
    RewardRunner([("spy", spy, 1.0)], 20.0)(batch)
    assert seen["prompts"] == [[{"role": "user", "content": "q"}]] * 2
    assert seen["completions"] == [[{"role": "assistant", "content": t}] for t in "ab"]
    assert seen["completion_ids"] == [[0], [1]]
    assert seen["answer"] == ["1", "2"] and seen["unit"] == ["cm", None]
    assert "prompt" not in seen


def test_prompts_without_messages_are_plain_text():
    seen = {}
    batch = [R(P([], {"prompt": "q"}), "a")]
    RewardRunner(
        [("spy", lambda prompts, completions, **c: seen.update(p=prompts, c=completions) or [0.0], 1.0)], 20.0
    )(batch)
    assert seen == {"p": ["q"], "c": ["a"]}


def test_the_reward_is_the_weighted_sum_and_a_missing_term_is_left_out():
    batch, metrics = run(("a", lambda prompts, **c: [1.0, None], 2.0), ("b", lambda prompts, **c: [0.5, 0.25], -1.0))
    assert [r.reward for r in batch] == [1.5, -0.25]
    assert [r.reward_terms for r in batch] == [{"a": 1.0, "b": 0.5}, {"a": None, "b": 0.25}]
    assert metrics == {
        "rewards/a": 1.0,
        "rewards/b": 0.375,
        "unscored/a": 1.0,
        "unscored/a/none": 1.0,
        "unscored/b": 0.0,
    }


def test_without_any_term_the_reward_is_none():
    batch, metrics = run(("a", lambda prompts, **c: [None, 0.0], 1.0))
    assert [r.reward for r in batch] == [None, 0.0]
    assert metrics["unscored/a"] == 1


def test_a_raising_reward_is_unscored_and_warned_about_once_with_its_traceback(caplog):
    def broken(prompts, completions, **columns):
        raise KeyError("no such column")

    runner = RewardRunner([("broken", broken, 1.0), ("ones", ones, 1.0)], 20.0)
    with caplog.at_level(logging.WARNING, logger="rewards"):
        for _ in range(3):
            batch = rollouts("a", "b")
            metrics = runner(batch)
    assert [r.reward for r in batch] == [1.0, 1.0] and batch[0].reward_terms == {"broken": None, "ones": 1.0}
    assert metrics["unscored/broken/raised"] == 2 and "rewards/broken" not in metrics
    assert len(caplog.records) == 1
    assert all(part in caplog.text for part in ("'broken'", "KeyError", "no such column", "test_rewards_runner.py"))


@pytest.mark.parametrize(
    "error", [SystemExit(0), KeyboardInterrupt(), TimeoutError("of its own"), asyncio.CancelledError()]
)
def test_no_exception_of_a_reward_leaves_the_runner(error):
    def broken(prompts, completions, **columns):
        raise error

    async def broken_async(prompts, completions, **columns):
        raise error

    rewards = [("a", broken, 1.0)]
    if not isinstance(error, (SystemExit, KeyboardInterrupt)):  # these end an event loop by design
        rewards.append(("b", broken_async, 1.0))
    batch, metrics = run(*rewards)
    assert batch[0].reward is None and metrics["unscored/a/raised"] == 2


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([float("nan"), 1.0], "not_finite"), ([float("inf"), 1.0], "not_finite"), (["1", 1.0], "invalid"),
        ([[1.0], 1.0], "invalid"), ([None, 1.0], "none"), (np.array([np.nan, 1.0]), "not_finite"),
    ],
)  # fmt: skip
def test_a_bad_value_leaves_its_completion_unscored_and_no_other(values, kind):
    batch, metrics = run(("bad", lambda prompts, **c: values, 1.0))
    assert [r.reward for r in batch] == [None, 1.0] and metrics[f"unscored/bad/{kind}"] == 1


@pytest.mark.parametrize("values", [None, 1.0, [1.0], [1.0] * 3, "ab", {"a": 1, "b": 2}])
def test_a_return_of_the_wrong_shape_is_an_error_of_that_reward(values, caplog):
    with caplog.at_level(logging.WARNING, logger="rewards"):
        batch, metrics = run(("bad", lambda prompts, **c: values, 1.0), ("ones", ones, 1.0))
    assert [r.reward for r in batch] == [1.0, 1.0] and metrics["unscored/bad/invalid"] == 2
    assert "'bad'" in caplog.text and "one number or None per completion" in caplog.text


def test_booleans_and_numpy_numbers_are_numbers():
    batch, _ = run(("ok", lambda prompts, **c: [True, np.float32(0.5)], 1.0))
    assert [r.reward for r in batch] == [1.0, 0.5]


def test_a_hanging_reward_is_abandoned_and_the_others_count():
    release = threading.Event()
    batch, metrics = run(("slow", lambda prompts, **c: release.wait(60), 1.0), ("ones", ones, 1.0), timeout_s=0.3)
    release.set()
    assert [r.reward for r in batch] == [1.0, 1.0] and metrics["unscored/slow/timed_out"] == 2


def test_async_rewards_run_at_the_same_time():
    meeting = {}

    def meets(me, other):
        async def reward(prompts, completions, **columns):
            meeting[me] = asyncio.Event()
            while other not in meeting:
                await asyncio.sleep(0.001)
            return [1.0] * len(prompts)

        return reward

    batch, metrics = run(("a", meets("a", "b"), 1.0), ("b", meets("b", "a"), 1.0))
    assert [r.reward for r in batch] == [2.0, 2.0] and metrics["unscored/a"] == 0


def test_a_blocking_async_reward_is_abandoned_and_the_next_batch_works():
    calls = []

    async def blocks_once(prompts, completions, **columns):
        calls.append(1)
        if len(calls) == 1:
            time.sleep(30)
        return [1.0] * len(prompts)

    runner = RewardRunner([("a", blocks_once, 1.0)], 0.5)
    first, second = rollouts("a"), rollouts("a")
    assert runner(first)["unscored/a/timed_out"] == 1 and first[0].reward is None
    runner.timeout_s = 20.0
    assert runner(second)["unscored/a"] == 0 and second[0].reward == 1.0


def test_an_async_reward_with_other_arguments_is_unscored():
    async def narrow(prompts):
        return [1.0] * len(prompts)

    _, metrics = run(("narrow", narrow, 1.0))
    assert metrics["unscored/narrow/raised"] == 2


def test_a_process_with_a_hanging_reward_ends():
    code = (
        "import time; from tests.test_rewards_runner import *;"
        "run(('slow', lambda prompts, **c: time.sleep(600), 1.0), timeout_s=0.2); print('done')"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout.strip() == "done" and done.returncode == 0


def test_one_reward_cannot_change_what_the_next_one_sees():
    def greedy(prompts, completions, answer, **columns):
        completions.clear()
        answer.clear()
        return [0.0] * len(prompts)

    batch, _ = run(("greedy", greedy, 1.0), ("math", get_reward("verifier:math"), 1.0))
    assert [r.reward_terms["math"] for r in batch] == [1.0, 0.0]


def test_metrics_that_a_reward_logs_are_returned():
    _, metrics = run(("math", get_reward("verifier:math"), 1.0), texts=("2", "<think>"))
    assert metrics["rewards/math"] == 0.5 and metrics["verdicts/math/unparsed"] == 0.5


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="'a' is named twice"):
        RewardRunner([("a", ones, 1.0), ("a", ones, 1.0)], 1.0)
    with pytest.raises(ValueError, match="timeout_s"):
        RewardRunner([("a", ones, 1.0)], 0)
    assert RewardRunner([("a", ones, 1.0)], 1.0)([]) == {}

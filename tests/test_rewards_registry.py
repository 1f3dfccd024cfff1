"""Rewards by name, by path, and made of verifiers."""

import doctest

import pytest

import rewards
import rewards.completions
from rewards import from_verifier, get_reward, list_rewards, register_reward, reward_info
from rewards import registry as registry_module
from verifiers import Verdict, register_verifier
from verifiers import registry as verifier_registry


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(registry_module, "_registered", dict(registry_module._registered))
    monkeypatch.setattr(verifier_registry, "_registered", dict(verifier_registry._registered))


def shortness(prompts, completions, limit, **columns):
    """Shorter than the row's limit.

    More text.
    """
    return [float(len(c) < n) for c, n in zip(completions, limit)]


def test_docstring_examples():
    for module in (rewards, rewards.completions):
        assert doctest.testmod(module).failed == 0


def test_a_reward_is_found_by_name_and_by_path(registry):
    register_reward("shortness")(shortness)
    assert get_reward("shortness") is get_reward(f"{__name__}:shortness") is shortness
    assert "shortness" in list_rewards() and "verifier:math" in list_rewards()
    info = reward_info("shortness")
    assert (info.columns, info.summary) == (("limit",), "Shorter than the row's limit.")
    assert reward_info("verifier:math").columns == ("answer",)


def test_unknown_names_suggest_the_nearest_one(registry):
    register_reward("shortness")(shortness)
    with pytest.raises(ValueError, match="did you mean 'shortness'"):
        get_reward("shortnes")
    with pytest.raises(ValueError, match="did you mean 'verifier:math'"):
        get_reward("math")
    with pytest.raises(ValueError, match="did you mean 'math'"):
        get_reward("verifier:maths")
    with pytest.raises(ValueError, match="did you mean 'shortness'"):
        get_reward(f"{__name__}:shortnes")


def test_names_are_taken_once_and_hold_no_colon(registry):
    register_reward("shortness")(shortness)
    with pytest.raises(ValueError, match="already registered"):
        register_reward("shortness")(lambda prompts, completions: [])
    with pytest.raises(ValueError, match="colon"):
        register_reward("a:b")


def test_a_verifier_reward_scores_both_completion_forms_and_leaves_errors_unscored():
    reward = from_verifier("math")
    assert reward.__name__ == "math"
    plain = reward(["q"] * 4, [r"\boxed{2}", "3", "no idea", "2"], answer=["2", "2", "2", None])
    assert plain == [1.0, 0.0, 0.0, None]
    chat = [
        [{"role": "assistant", "content": r"\boxed{2}"}],
        [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "3"}],
    ]
    assert reward(prompts=[[], []], completions=chat, answer=["2", "2"], trainer_state=object()) == [1.0, 0.0]


def test_a_verifier_reward_sees_the_prompt(registry):
    register_verifier("asked")(lambda response, row: Verdict(float(row.get("prompt") == response), "fail"))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    reward = from_verifier("asked")
    assert reward(["x", chat, ""], ["x", "c", "y"]) == [1.0, 1.0, 0.0]
    assert reward(["x"], ["own"], prompt=["own"]) == [1.0]


def test_a_verifier_reward_reports_the_rates_of_its_statuses():
    logged = {}
    from_verifier("math")(
        ["q"] * 4, ["2", "", "<think>", "2"], answer=["2", "2", "2", []], log_metric=logged.__setitem__
    )
    assert logged == {"verdicts/math/unparsed": 0.5, "verdicts/math/timeout": 0.0, "verdicts/math/error": 0.25}


def test_a_verifier_reward_keeps_the_order_of_the_batch(registry):
    register_verifier("echo")(lambda response, row: Verdict(float(response) / 1000, "fail"))
    assert from_verifier("echo")([""] * 500, [str(i) for i in range(500)]) == [i / 1000 for i in range(500)]

"""Length, overlong, repetition and language rewards, their parameters, and Qwen2.5-Math's combination."""

import asyncio
import doctest
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

import rewards.compose
import rewards.shaping
import rewards.specs
from rewards import RewardRunner, get_reward, list_rewards, register_reward, register_reward_factory, reward_info
from rewards import registry as registry_module
from rewards.registry import check_reward
from rewards.specs import read_spec, read_specs
from tests.test_rewards_runner import rollouts


@pytest.fixture
def registry(monkeypatch):
    for name in ("_registered", "_factories"):
        monkeypatch.setattr(registry_module, name, dict(getattr(registry_module, name)))


@pytest.mark.parametrize("module", [rewards.shaping, rewards.compose, rewards.specs])
def test_docstring_examples(module, registry):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def score(name, texts=(), ids=None, parameters=None, **columns):
    count = len(ids if ids is not None else texts)
    return get_reward(name, parameters or {})(
        prompts=[""] * count, completions=list(texts) or [""] * count, completion_ids=ids, **columns
    )


def tokens(*lengths):
    return [list(range(n)) for n in lengths]


# --- length and overlong --------------------------------------------------------------------------------------------


def test_length_is_one_inside_the_band_and_falls_linearly_to_zero_at_the_margin():
    values = score(
        "length", ids=tokens(0, 10, 15, 20, 30, 35, 50, 99), parameters={"low": 20, "high": 30, "margin": 20}
    )
    assert values == [0.0, 0.5, 0.75, 1.0, 1.0, 0.75, 0.0, 0.0]


def test_a_band_without_margin_has_sharp_edges_and_may_be_open_on_one_side():
    assert score("length", ids=tokens(9, 10, 10**5), parameters={"low": 10}) == [0.0, 1.0, 1.0]
    assert score("length", ids=tokens(0, 10, 11), parameters={"high": 10}) == [1.0, 1.0, 0.0]
    assert score("length", ids=tokens(9, 10, 11), parameters={"low": 10, "high": 10}) == [0.0, 1.0, 0.0]


def test_length_in_characters_counts_the_text_and_in_tokens_the_ids():
    both = {"texts": ["日本", "abcd"], "ids": tokens(4, 2)}
    assert score("length", **both, parameters={"high": 3, "unit": "characters"}) == [1.0, 0.0]
    assert score("length", **both, parameters={"high": 3}) == [0.0, 1.0]


def test_overlong_agrees_with_trls_soft_overlong_punishment():
    from trl.rewards import get_soft_overlong_punishment

    ids = tokens(*range(70))
    theirs = get_soft_overlong_punishment(max_completion_len=60, soft_punish_cache=24)(ids)
    assert score("overlong", ids=ids, parameters={"max_length": 60, "buffer": 24}) == pytest.approx(theirs)


def test_tokens_are_needed_where_they_are_counted():
    with pytest.raises(ValueError, match="no completion_ids"):
        score("overlong", ["a"], parameters={"max_length": 4, "buffer": 2})


# --- repetition -----------------------------------------------------------------------------------------------------


def test_repetition_is_the_share_of_ngrams_seen_before():
    loop = [1, 2, 3] * 10  # 28 trigrams, 3 different ones
    assert score("repetition", ids=[[*range(30)], loop, [1, 2]], parameters={"ngram": 3}) == [
        0.0, pytest.approx(3 / 28 - 1), 0.0,
    ]  # fmt: skip


def test_repetition_depends_on_the_pattern_not_on_which_tokens_make_it():
    rng = random.Random(0)
    ids = [rng.randrange(5) for _ in range(200)]
    renamed = [token * 7 + 3 for token in ids]
    values = score("repetition", ids=[ids, renamed, ids * 2], parameters={"ngram": 4})
    assert values[0] == values[1] and values[2] < values[0] <= 0 and min(values) > -1


def test_words_are_letters_in_scripts_without_spaces_and_signs_count():
    parameters = {"ngram": 2, "unit": "words"}
    assert score("repetition", ["天地玄黄", "天地天地天地", "!!!!!"], parameters=parameters) == [
        0.0, pytest.approx(2 / 5 - 1), pytest.approx(1 / 4 - 1),
    ]  # fmt: skip


# --- language -------------------------------------------------------------------------------------------------------


def test_language_consistency_is_the_share_of_words_in_the_rows_language():
    texts = ["All is English.", "Half is 中文 文", "<think>想一想</think> four words of English", "x = `变量`"]
    assert score("language_consistency", texts, answer_language=["en"] * 4) == [1.0, 0.4, 1.0, 1.0]
    mixed = score("language_consistency", texts[2:3], answer_language=["en"], thinking_language=["en"])
    assert mixed == [pytest.approx(4 / 7)]
    assert score("language_consistency", texts[2:3], answer_language=["en"], thinking_language=["zh"]) == [1.0]


def test_what_may_be_quoted_comes_from_the_columns():
    texts = ["He wrote “天地玄黄宇宙洪荒” there."] * 2
    values = score(
        "language_consistency", texts, answer_language=["en"] * 2, passages=[["天地玄黄宇宙洪荒"], ["other"]]
    )
    assert values == [1.0, pytest.approx(3 / 11)]


def test_rows_without_a_known_language_are_unscored_and_a_missing_answer_is_zero(caplog):
    texts = ["a b", "a b", "<think>never closed", ""]
    assert score("language_consistency", texts, answer_language=[None, "klingon", "en", "en"]) == [None, None, 0.0, 0.0]
    assert "unknown language 'klingon'" in caplog.text


# --- sigmoid(0.5 r_m) + (r_v - 1) -----------------------------------------------------------------------------------


@pytest.fixture
def model_scores(registry):
    """`fixed` gives the column `r_m` as the model's reward."""
    register_reward("fixed")(lambda prompts, completions, r_m, **columns: r_m)


PAIR = {"model_reward": "fixed", "verifier_reward": "verifier:math"}


def combined(r_m, right, **parameters):
    texts = ["4" if one else "5" for one in right]
    parameters = {**PAIR, **parameters}
    return score("qwen_math", texts, parameters=parameters, r_m=list(r_m), answer=["4"] * len(texts))


def test_the_combination_by_hand(model_scores):
    assert combined([0.0, 0.0, 2.0, -2.0], [True, False, True, False]) == pytest.approx(
        [0.5, -0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)) - 1]
    )


def test_every_right_answer_is_above_every_wrong_one_and_the_model_orders_each(model_scores):
    r_m = [-1e6, -50.0, -3.0, 0.0, 3.0, 50.0, 1e6]
    right, wrong = combined(r_m, [True] * 7), combined(r_m, [False] * 7)
    assert min(right) >= 0 >= max(wrong) and right[1] > 0 > wrong[4]
    assert right == sorted(right) and wrong == sorted(wrong) and len(set(right[1:5])) == 4


def test_unscored_by_either_is_unscored(model_scores):
    texts, answers = ["4", "4", "4"], ["4", None, "4"]
    values = score("qwen_math", texts, parameters=PAIR, r_m=[None, 1.0, 0.0], answer=answers)
    assert values == [None, None, 0.5]


def test_partial_credit_and_weights_have_no_place_in_the_formula(model_scores, registry):
    register_reward("half")(lambda prompts, completions, **columns: [0.5] * len(completions))
    with pytest.raises(ValueError, match=r"'half' gave 0\.5"):
        combined([0.0], [True], verifier_reward="half")
    with pytest.raises(ValueError, match="'fixed' has a weight"):
        get_reward("qwen_math", {**PAIR, "model_reward": {"name": "fixed", "weight": 2}})


def test_an_async_model_reward_is_awaited_and_a_failing_one_is_named(registry):
    async def judged(prompts, completions, **columns):
        await asyncio.sleep(0)
        return [2.0] * len(completions)

    register_reward("judged")(judged)
    register_reward("broken")(lambda prompts, completions, **columns: 1 / 0)
    assert combined([0.0], [True], model_reward="judged") == [pytest.approx(1 / (1 + math.exp(-1)))]
    with pytest.raises(RuntimeError, match=r"(?s)'broken' raised.*ZeroDivisionError"):
        combined([0.0], [True], model_reward="broken")


def test_the_runner_reports_a_model_reward_that_is_not_finite(model_scores):
    batch = rollouts("2", rows=[{"answer": "2", "r_m": math.nan}])
    metrics = RewardRunner([("q", get_reward("qwen_math", PAIR), 1.0)], 20.0)(batch)
    assert metrics["unscored/q/not_finite"] == 1 and batch[0].reward is None


# --- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("overlong", {"max_lenght": 9, "buffer": 2}, "no parameter 'max_lenght'; did you mean 'max_length'"),
        ("overlong", {"buffer": 2}, "needs 'max_length': {name: overlong, max_length: …}"),
        ("overlong", {"max_length": 4, "buffer": 5}, "reward 'overlong': buffer"),
        ("overlong", {"max_length": "4", "buffer": 2}, "max_length has to be a number of 1 or more, got '4'"),
        ("length", {}, "give low, high or both"),
        ("length", {"low": 3, "high": 2}, "low not above high"),
        ("length", {"high": 2, "unit": "words"}, "tokens or characters"),
        ("repetition", {"ngram": 0}, "ngram"),
        ("repetition", {"unit": "characters"}, "tokens or words"),
        ("language_consistency", {"language": "en"}, "Its parameters: none"),
        ("qwen_math", {"model_reward": "no_such", "verifier_reward": "verifier:math"}, "unknown reward 'no_such'"),
        ("verifier:text", {"mach": "exact"}, "reads no column 'mach'; did you mean 'match'"),
        ("verifier:all_of", {"verifiers": ["math", "format"], "choices": []}, "reads no column 'choices'"),
        ("json:loads", {"a": 1}, "has no parameters, got a"),
    ],
)
def test_wrong_parameters_are_named_with_the_remedy(name, parameters, message):
    with pytest.raises(ValueError) as caught:
        get_reward(name, parameters)
    assert message in str(caught.value)


def test_names_and_parameters_are_checked_without_making_the_reward(registry):
    made = []

    def make(size: int):
        """Costly."""
        made.append(size)
        return lambda prompts, completions, **columns: [float(size)] * len(completions)

    register_reward_factory("costly", columns=("a",), optional=("b",))(make)
    check_reward("costly", {"size": 3})
    for parameters in ({}, {"size": 3, "sise": 4}):
        with pytest.raises(ValueError, match="size"):
            check_reward("costly", parameters)
    info = reward_info("costly")
    assert (info.columns, info.optional, info.parameters, info.summary) == (("a",), ("b",), ("size",), "Costly.")
    assert not made and "costly" in list_rewards()
    fn = get_reward("costly", {"size": 3})
    assert fn([""], [""]) == [3.0] and fn.__name__ == "costly" and made == [3]


def test_a_factory_is_found_by_path_too(registry):
    fn = get_reward("rewards.shaping:overlong", {"max_length": 4, "buffer": 2})
    assert fn([""], [""], completion_ids=[[1, 2, 3]]) == [-0.5]


def test_a_factory_may_not_use_the_keys_of_an_entry():
    for make in (lambda name: None, lambda weight: None):
        with pytest.raises(ValueError, match="YAML entries use that key"):
            register_reward_factory("x")(make)


def test_parameters_of_a_verifier_fill_columns_that_a_row_does_not_have():
    fn = get_reward("verifier:text", {"match": "exact", "answer": "Paris"})
    assert fn([""] * 3, ["Paris", "paris", "Rome"], answer=[None, None, "Rome"]) == [1.0, 0.0, 1.0]
    both = get_reward("verifier:all_of", {"verifiers": ["math", "format"], "mode": "no_think"})
    assert both([""], ["4"], answer=["4"]) == [1.0]


# --- entries --------------------------------------------------------------------------------------------------------


def test_weights_stand_in_the_entry_or_in_a_list():
    entries = ["verifier:math", {"name": "overlong", "max_length": 4, "buffer": 2}]
    assert [spec.weight for spec in read_specs(entries)] == [1.0, 1.0]
    assert [spec.weight for spec in read_specs(entries, [0.5, 2])] == [0.5, 2.0]
    assert read_spec({"name": "a", "weight": "1e-3"}).weight == 0.001


@pytest.mark.parametrize(
    ("entries", "weights", "message"),
    [
        (["a", "a"], [], "'a' is named twice"),
        (["a"], [1, 2], "2 weights for 1 rewards"),
        ([{"name": "a", "weight": 2}], [1], "has a weight of its own"),
        ([{"weight": 2}], [], "needs a name"),
        ([3], [], "got 3"),
        ([{"name": "a", "weight": "much"}], [], "weight of 'a'"),
        ([{"name": "a", "weight": True}], [], "weight of 'a'"),
        ([{"name": "a", "weight": math.inf}], [], "weight of 'a'"),
    ],
)
def test_malformed_entries_are_refused(entries, weights, message):
    with pytest.raises(ValueError, match=message):
        read_specs(entries, weights)


def test_equal_entries_have_one_key_whatever_the_order_and_weight():
    one, other = read_spec({"name": "a", "x": 1, "y": 2, "weight": 3}), read_spec({"y": 2, "x": 1, "name": "a"})
    assert one.key == other.key != read_spec({"name": "a", "x": 2, "y": 2}).key


def test_the_identity_of_a_reward_changes_with_the_file_it_names(tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text("tasks: {a: verifier:math}\n")
    before = read_spec(f"routing:{path}").identity()
    assert before == read_spec({"name": "routing", "path": str(path)}).identity()
    path.write_text("tasks: {a: verifier:text}\n")
    assert read_spec(f"routing:{path}").identity() != before


def test_the_identity_of_a_reward_model_changes_when_it_is_trained_again_at_the_same_path(tmp_path):
    model, tasks = tmp_path / "model", tmp_path / "tasks.yaml"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = bytearray(b"ab" * (3 << 20))  # larger than what is read whole
    (model / "model.safetensors").write_bytes(weights)
    tasks.write_text(f"tasks: {{a: [verifier:math, {{name: reward_model, path: {model}, weight: 0.5}}]}}\n")
    entries = [
        f"reward_model:{model}",
        {"name": "reward_model", "path": str(model)},
        {"name": "qwen_math", "model_reward": f"reward_model:{model}", "verifier_reward": "verifier:math"},
        f"routing:{tasks}",
    ]

    def identities():
        return [read_spec(entry).identity() for entry in entries]

    first = identities()
    assert identities() == first
    (model / "model.safetensors").write_bytes(bytes(b + 1 for b in weights))
    trained = identities()
    assert all(a != b for a, b in zip(first, trained, strict=True))
    (model / "config.json").write_text('{"reward_end_token": "x"}')
    assert all(a != b for a, b in zip(trained, identities(), strict=True))
    assert read_spec("reward_model:someone/on-the-hub").identity()[2] == []


def test_rewards_and_their_built_ins_load_no_torch():
    code = (
        "import sys, rewards; [rewards.reward_info(n) for n in rewards.list_rewards()]; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "False", done.stderr

"""A teacher behind a server says what the same model says in this process, and what goes wrong is named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from alignment.algorithms.teachers import Teachers
from alignment.errors import EngineLost, UserError
from alignment.losses.divergence import FLOOR
from alignment.models import Policy
from alignment.models import teacher_server as asking
from alignment.models.teacher import LocalTeacher
from alignment.models.teacher_server import VllmTeacher, load_server_teacher
from alignment.packing import conversation, group
from alignment.types import Segment
from tests.teacher_server import teacher_server
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import train, weights_hash
from tests.training_distill import KINDS, make, update

SIZE = len(tiny_tokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3", seed=7, vocab_size=SIZE)


@pytest.fixture
def server(model):
    with teacher_server(model) as running:
        yield running


def ask(server, **settings) -> VllmTeacher:
    return VllmTeacher(server.url, SIZE, **{"wait_s": 0, **settings})


def trees():
    tool = Segment([12, 13, 14, 15], scored=np.array([True, False, False, True]))
    tree = group([5, 6, 7, 8], [Segment([9, 10, 11]), tool])
    return [tree, conversation([20, 21, 22, 23, 24], [False, False, True, True, True])]


def scored(given) -> tuple[np.ndarray, np.ndarray]:
    segments = [s for tree in given for s in tree.segments if s.scored is not None and s.scored.any()]
    return tuple(
        np.concatenate([s.columns[n][s.scored] for s in segments]) for n in ("teacher_ids", "teacher_logprobs")
    )


def test_the_server_says_what_the_model_says_in_this_process(server, model):
    remote, local = trees(), trees()
    ask(server).add_top_k(remote, 6, 1.0)
    LocalTeacher(Policy(tiny_model("qwen3", seed=7, vocab_size=SIZE)), SIZE).add_top_k(local, 6, 1.0)
    (ids, log_p), (local_ids, local_log_p) = scored(remote), scored(local)
    assert ids.shape == (8, 6)
    assert np.array_equal(ids, local_ids)
    assert np.allclose(log_p, local_log_p, atol=1e-4)


def test_a_branch_is_one_request_with_its_whole_path(server):
    ask(server).add_top_k(trees(), 3, 1.0)
    asked = sorted(server.asked, key=lambda body: body["prompt"])
    prompts = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12, 13, 14, 15], [20, 21, 22, 23, 24]]
    assert [body["prompt"] for body in asked] == prompts
    assert {body["model"] for body in asked} == {"teacher"}
    assert {body["prompt_logprobs"] for body in asked} == {3}
    assert {body["max_tokens"] for body in asked} == {1}


@pytest.mark.parametrize("kind", ["top_k", "stored"])
def test_a_step_with_a_server_equals_one_with_the_model(server, model, kind, tmp_path):
    settings = {**KINDS[kind], "batch_size": 4, "on_policy_share": 0.5}
    here, there = make(**settings), make(**settings)
    local = LocalTeacher(Policy(tiny_model("qwen3", seed=7, vocab_size=SIZE)), SIZE)
    here.teachers = Teachers({"default": local}, SIZE, 5)
    there.teachers = Teachers({"default": ask(server)}, SIZE, 5)
    a, b = update(here), update(there)
    assert a[0] == pytest.approx(b[0], rel=1e-4)
    for name, gradient in a[1].items():
        assert np.allclose(gradient, b[1][name], atol=1e-5), name


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only sleeping takes."""
    passed = [0.0]
    monkeypatch.setattr(asking, "time", SimpleNamespace(
        monotonic=lambda: passed[0], sleep=lambda seconds: passed.append(passed.pop() + seconds)))  # fmt: skip
    return passed


def test_passing_failures_are_asked_about_again(server, clock):
    server.script = [lambda body: JSONResponse({}, 503), lambda body: PlainTextResponse("busy", 429)]
    ask(server, wait_s=20).add_top_k(trees()[1:], 3, 1.0)
    assert len(server.asked) == 3


def test_a_server_is_waited_for_and_all_requests_give_up_at_the_same_time(server, clock):
    server.script = [lambda body: JSONResponse({}, 503)] * 100
    remote = ask(server, wait_s=600, connections=1)
    with pytest.raises(EngineLost, match=r"status 503.* no answer for 600 s"):
        remote.add_top_k(trees()[1:], 3, 1.0)
    assert clock == pytest.approx([600])
    tried = len(server.asked)
    with pytest.raises(EngineLost):
        remote.add_top_k(trees()[1:], 3, 1.0)
    assert len(server.asked) == tried + 1
    server.script = []
    remote.add_top_k(trees()[1:], 3, 1.0)  # it is back


def test_a_run_whose_teacher_is_gone_saves_and_goes_on_exactly(server, tmp_path):
    def run(folder, steps, gone_after=None):
        algorithm = make(**KINDS["top_k"])
        algorithm.teachers = Teachers({"default": ask(server)}, SIZE, 5)
        after_update = algorithm.after_update

        def lose(step, metrics):
            after_update(step, metrics)
            server.script = [lambda body: JSONResponse({}, 503)] * 100 if step == gone_after else []

        algorithm.after_update = lose
        train(str(tmp_path / folder), steps, algorithm=algorithm, policy=algorithm.student, lr_schedule="constant")
        return weights_hash(algorithm.student)

    with pytest.raises(EngineLost, match=r"status 503.*Everything up to step 1 is saved"):
        run("a", 2, gone_after=1)
    server.script = []
    assert run("a", 2) == run("b", 2)


def broken(positions):
    return lambda body: JSONResponse({"choices": [{"index": 0, "text": "", "prompt_logprobs": positions}]})


ENTRY = {str(i): {"logprob": -1.0 - i, "rank": i, "decoded_token": "x"} for i in range(1, 4)}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: JSONResponse({}, 500), r"status 500.*no answer for 0 s"),
        (lambda body: PlainTextResponse("hello"), "not JSON"),
        (lambda body: JSONResponse([]), "no JSON object"),
        (lambda body: JSONResponse({"choices": [{"text": ""}]}), "is it vLLM"),
        (broken(None), "is it vLLM"),
        (broken([None, ENTRY]), "of 2 tokens came back for 5"),
        (broken([None, *[{"1": ENTRY["1"]}] * 4]), "1 tokens came back where 3"),
        (broken([None, *[{str(9**6 + i): {"logprob": -1.0, "rank": i} for i in range(3)}] * 4]), "531441 among them"),
        (broken([None, *[{"x": {"logprob": -0.1, "rank": 0}}] * 4]), "is it vLLM"),
    ],
)
def test_answers_of_another_kind_are_named(server, answer, message):
    server.script = [answer]
    with pytest.raises(UserError, match=message):
        ask(server).add_top_k(trees()[1:], 3, 1.0)


def test_a_limit_of_the_server_comes_with_its_remedy(server):
    with pytest.raises(UserError, match="--max-logprobs of at least teacher_top_k"):
        ask(server).add_top_k(trees(), 30, 1.0)


def test_padding_is_taken_out_of_the_distribution(model):
    """A server's model has rows behind the tokens, and some of them are among its most probable ones."""
    padded = tiny_model("qwen3", seed=7, vocab_size=SIZE + 400)
    remote, local = trees(), trees()
    with teacher_server(padded) as server:
        ask(server).add_top_k(remote, 20, 1.0)
    LocalTeacher(Policy(padded), SIZE).add_top_k(local, 20, 1.0)
    (ids, log_p), (local_ids, local_log_p) = scored(remote), scored(local)
    present = log_p[:, :-1] > FLOOR / 2
    assert 0 < (~present).sum() < present.size
    assert np.allclose(np.exp(log_p).sum(-1), 1, atol=1e-5)
    for row in range(len(ids)):
        n = present[row].sum()
        assert np.array_equal(ids[row, :n], local_ids[row, :n])
        # padding that is not among them remains in the rest
        assert (log_p[row, :n] < local_log_p[row, :n]).all()
        assert np.ptp(local_log_p[row, :n] - log_p[row, :n]) < 1e-4


def test_impossible_tokens_are_taken_as_such(server):
    """vLLM writes -9999 for -inf."""
    entry = ENTRY | {"3": {"logprob": -9999.0, "rank": 3}}
    server.script = [broken([None, *[entry] * 4])]
    given = trees()[1:]
    ask(server).add_top_k(given, 3, 1.0)
    assert np.exp(scored(given)[1][:, 2]).max() == 0


def test_settings_that_a_server_cannot_serve_are_refused(server):
    with pytest.raises(UserError, match=r"divergence_temperature: 2\.0 needs all"):
        ask(server).add_top_k(trees(), 3, 2.0)
    with pytest.raises(UserError, match="teacher_top_k: the server"):
        Teachers({"default": ask(server)}, SIZE)
    with pytest.raises(UserError, match="it serves teacher, not 'other'"):
        ask(server, model="other")
    with pytest.raises(UserError, match="teacher_api_key_env"):
        ask(server, api_key_env="NO_SUCH_VARIABLE")


def test_a_server_of_several_models_is_asked_for_one(model):
    with teacher_server(model, served=("a", "b")) as server:
        with pytest.raises(UserError, match="serves a, b; say which one with teacher_served_name"):
            ask(server)
        assert ask(server, model="b").model == "b"


def test_the_key_goes_along(server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "secret")
    ask(server, api_key_env="TEACHER_KEY").add_top_k(trees()[1:], 3, 1.0)
    assert server.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "nonsense", "http://[/v1"])
def test_no_server_is_one_clear_error(url):
    with pytest.raises(UserError, match="teacher "):
        VllmTeacher(url, SIZE, wait_s=0, timeout_s=5)


def test_the_tokenizer_is_that_of_the_model_served(model, tmp_path):
    """Found where the server says it loaded from, or where it is named."""
    tiny_tokenizer().save_pretrained(tmp_path / "same")
    other = tiny_tokenizer()
    other.add_tokens(["<tool>"])
    other.save_pretrained(tmp_path / "other")
    with teacher_server(model, root=str(tmp_path / "same")) as server:
        assert load_server_teacher(server.url, tiny_tokenizer()).vocabulary == SIZE
        with pytest.raises(UserError, match="'<tool>' for the teacher"):
            load_server_teacher(server.url, tiny_tokenizer(), tokenizer_path=str(tmp_path / "other"))
    with (
        teacher_server(model, root=str(tmp_path / "gone")) as server,
        pytest.raises(UserError, match="teacher_tokenizer"),
    ):
        load_server_teacher(server.url, tiny_tokenizer())

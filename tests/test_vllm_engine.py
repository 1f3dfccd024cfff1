"""What the vLLM engine asks and makes of the answers, without vLLM: scripted answers and a scripted server."""

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from safetensors import SafetensorError
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import PreTrainedModel

from alignment.errors import EngineLost, UserError
from alignment.models import Policy
from alignment.rollout import vllm_nccl
from alignment.rollout.thinking import ThinkingTokens
from alignment.rollout.vllm_local import LocalBackend
from alignment.rollout.vllm_nccl import NcclUpdates, _AllServers
from alignment.rollout.vllm_sample import Answer, make_samples
from alignment.rollout.vllm_server import serve
from alignment.rollout.vllm_servers import ServerDown, Servers, read_answer
from alignment.rollout.vllm_weights import Probe, WeightFolder
from alignment.types import Prompt, Sampling
from recipes.engines import EngineConfig, weights_folder
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
THINKING = ThinkingTokens(TOKENIZER)
OPEN, CLOSE = (TOKENIZER.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))
ROOM = len(THINKING.stop_ids)
MINUS = -9999.0


def samples(sampling, ids=(5, 6), n=1, most=64, step=0):
    return make_samples([Prompt("p", [], list(ids))], n, sampling, step, THINKING, 512, len(TOKENIZER), most)[0]


def answer(ids, top=None, kept=None, stopped=False):
    return Answer(list(ids), [-0.5] * len(ids), top or [[(i, -0.5)] for i in ids], kept, stopped)


# --- one sample -------------------------------------------------------------------------------------------------------


def test_a_sample_without_a_budget_is_one_request():
    (sample,) = samples(Sampling(max_tokens=4, temperature=0.7, stop_token_ids=(9,), stop=("x",)))
    request = sample.next_request()
    assert request.token_ids == [5, 6]
    assert request.params["max_tokens"] == 4 and request.params["temperature"] == 0.7
    assert request.params["stop_token_ids"] == [9] and request.params["ignore_eos"]
    assert request.params["stop"] == ["x"] and request.params["include_stop_str_in_output"]
    assert sample.next_request() == request  # asked again after a failure, it is the same
    sample.take(answer([20, 9], stopped=True))
    assert sample.row.finish_reason == "stop" and sample.row.token_ids == [20, 9]


def test_seeds_come_from_the_samples_own_stream():
    def seeds(seed, step, n):
        return [s.next_request().params["seed"] for s in samples(Sampling(seed=seed), n=n, step=step)]

    assert seeds(0, 0, 3) == seeds(0, 0, 5)[:3]
    assert len({*seeds(0, 0, 3), *seeds(1, 0, 3), *seeds(0, 1, 3)}) == 9


def test_thinking_that_reaches_its_budget_is_ended_by_the_sentence():
    (sample,) = samples(Sampling(max_tokens=ROOM + 10, thinking_budget=3), ids=(5, OPEN))
    assert sample.next_request().params["max_tokens"] == 3
    first = sample.next_request().params["seed"]
    sample.take(answer([20, 21, 22]))
    assert sample.row.token_ids == [20, 21, 22, *THINKING.stop_ids]
    request = sample.next_request()
    assert request.token_ids == [5, OPEN, 20, 21, 22, *THINKING.stop_ids]
    assert request.params["max_tokens"] == 7 and request.params["seed"] != first
    sample.take(answer([30], stopped=True))
    rollout = sample.row.rollout(sample.sampling, TOKENIZER, 4)
    assert rollout.finish_reason == "budget" and rollout.policy_step == 4
    assert rollout.loss_mask == [True] * 3 + [False] * ROOM + [True]
    assert np.isnan(rollout.logprobs).tolist() == [not m for m in rollout.loss_mask]


def test_thinking_that_ends_in_time_goes_on_to_the_limit():
    (sample,) = samples(Sampling(max_tokens=ROOM + 10, thinking_budget=3), ids=(5, OPEN))
    sample.take(answer([20, CLOSE, 22]))
    assert sample.next_request().params["max_tokens"] == ROOM + 7
    sample.take(answer(range(30, 30 + ROOM + 7)))
    assert sample.row.finish_reason == "length" and sample.row.inserted is None


def test_a_block_that_the_response_opens_is_counted_from_there():
    (sample,) = samples(Sampling(max_tokens=ROOM + 10, thinking_budget=3))
    assert sample.next_request().params["max_tokens"] == 4
    sample.take(answer([OPEN, 20, 21, 22]))
    assert sample.row.inserted == (4, 4 + ROOM)


def test_what_truncation_left_is_read_from_the_most_probable_tokens():
    (sample,) = samples(Sampling(max_tokens=2, top_k=3))
    assert sample.next_request().params["logprobs"] == 11
    top = [[(20, -0.1), (21, -2.0), (22, -3.0), (23, MINUS)], [(25, -0.1), (26, MINUS)]]
    sample.take(answer([20, 25], top))
    assert [k.tolist() for k in sample.row.kept] == [[20, 21, 22], [25]]
    assert sample.row.kept[0].dtype == np.int32


def test_what_vllm_says_itself_that_truncation_left_is_taken():
    (sample,) = samples(Sampling(max_tokens=1, top_p=0.9))
    sample.take(answer([20], kept=[[20, 300]]))
    assert sample.row.kept[0].tolist() == [20, 300]


def test_an_answer_that_does_not_show_all_that_was_left_is_asked_for_again():
    (sample,) = samples(Sampling(max_tokens=1, top_p=0.9), most=300)
    request = sample.next_request()
    sample.take(answer([20], [[(i, -4.0) for i in range(64)]]))
    again = sample.next_request()
    assert not sample.row.token_ids
    assert again.params == {**request.params, "logprobs": 256}
    sample.take(answer([20], [[(i, -4.0) for i in range(256)]]))
    assert sample.next_request().params["logprobs"] == 300
    with pytest.raises(UserError, match="Set top_k to 292 or less"):
        sample.take(answer([20], [[(i, -4.0) for i in range(300)]]))


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="temperature"):
        samples(Sampling(temperature=0.001))
    with pytest.raises(UserError, match="max_prompt_length"):
        samples(Sampling(), ids=range(512))


# --- vLLM in this process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_checkpoint_that_vllm_starts_from_is_gone_when_it_has_started(monkeypatch, tmp_path, fails):
    found = []

    class Llm:
        llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=128))

        def __init__(self, model, **settings):
            found.append({file.name for file in Path(model).iterdir()})
            if fails:
                raise RuntimeError("no room")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Llm))
    with pytest.raises(RuntimeError, match="no room") if fails else contextlib.nullcontext():
        assert LocalBackend(tiny_model(), TOKENIZER, tmp_path / "weights", 0.3, 4).info.longest == 128
    assert {"model.safetensors", "tokenizer_config.json"} <= found[0]
    assert not list(tmp_path.iterdir())


# --- answers and servers ----------------------------------------------------------------------------------------------


def reply(version="v1", ids=(20, 21), logprob=-0.5, **changed):
    content = [{"token_id": i, "logprob": logprob, "top_logprobs": [{"token_id": i, "logprob": logprob}]} for i in ids]
    choice = {"token_ids": list(ids), "logprobs": {"content": content}, "finish_reason": "length"}
    spans = [{"version": version, "start": 0, "end": len(ids)}]
    return {"choices": [{**choice, "weight_versions": spans, **changed}]}


def test_answers_are_read():
    read = read_answer(reply(), "v1")
    assert read.token_ids == [20, 21] and read.logprobs == [-0.5, -0.5] and not read.stopped and read.kept is None
    assert read_answer(reply(finish_reason="stop", sampling_mask=[[20], [21, 22]]), "v1").kept == [[20], [21, 22]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (reply("v0"), "its weights are v0, not v1"),
        (reply(weight_versions=None), "unnamed"),
        (reply(finish_reason="abort"), "abort"),
        (reply(ids=()), "log-probabilities"),
        (reply(logprob=MINUS), "log-probabilities"),
    ],
)
def test_answers_of_other_weights_or_broken_ones_come_from_a_server_that_is_out(bad, message):
    with pytest.raises(ServerDown, match=message):
        read_answer(bad, "v1")


def test_an_answer_of_something_else_is_an_error():
    with pytest.raises(UserError, match="not one of vLLM"):
        read_answer({"choices": [{"text": "x"}]}, "v1")


@contextlib.contextmanager
def scripted(handler):
    """A server on this machine; handler(path, body) gives (status, reply)."""

    async def serve_one(request):
        body = await request.body()
        status, content = handler(request.url.path, json.loads(body) if body else None)
        return JSONResponse(content, status)

    app = Starlette(routes=[Route("/{path:path}", serve_one, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


async def nothing(client, server):
    """Every server has its weights."""


def finish(urls, sampling, n, refresh=nothing, wait_s=5.0):
    servers = Servers(urls, "", 5.0, wait_s, 8)
    servers.refresh_all(refresh)
    made = samples(sampling, n=n)
    servers.finish(made, refresh, None, "v1")
    return made


def test_requests_are_spread_and_those_of_a_failing_server_repeated_elsewhere():
    asked = {"good": 0, "bad": 0}

    def good(path, body):
        asked["good"] += path.endswith("generate")
        return 200, reply()

    def bad(path, body):
        asked["bad"] += path.endswith("generate")
        return (500, {"error": "dead"}) if path.endswith("generate") and asked["bad"] > 2 else (200, reply())

    with scripted(good) as one, scripted(bad) as two:
        made = finish([one, two], Sampling(max_tokens=2), 12)
    assert all(s.row.token_ids == [20, 21] for s in made)
    assert asked["bad"] >= 3 and asked["good"] >= 8


def test_a_server_with_other_weights_is_refreshed_before_it_is_asked_again():
    state = {"version": "v0", "refreshed": 0}

    async def refresh(client, server):
        state["refreshed"] += 1
        if state["refreshed"] > 1:
            state["version"] = "v1"

    with scripted(lambda path, body: (200, reply(state["version"]))) as url:
        made = finish([url], Sampling(max_tokens=2), 3, refresh)
    assert state["refreshed"] >= 2 and all(s.row.finish_reason for s in made)


def test_a_request_that_fails_everywhere_ends_the_run():
    def handler(path, body):
        return (500, {"error": "cannot"}) if path.endswith("generate") else (200, {})

    with scripted(handler) as url, pytest.raises(EngineLost, match="cannot"):
        finish([url], Sampling(max_tokens=2), 1)


def test_a_refusal_is_a_user_error_with_a_remedy():
    def handler(path, body):
        text = "Requested sample logprobs of 30, which is greater than max allowed: 20"
        return (400, {"error": text}) if path.endswith("generate") else (200, {})

    with scripted(handler) as url, pytest.raises(UserError, match="larger --max-logprobs"):
        finish([url], Sampling(max_tokens=2), 1)


def test_nobody_there_is_waited_for_and_then_reported():
    with pytest.raises(EngineLost, match=r"no vLLM server has answered for 0.3 s .*127.0.0.1:9"):
        finish(["http://127.0.0.1:9"], Sampling(), 1, wait_s=0.3)


def test_what_a_refresh_finds_out_ends_the_run():
    async def refresh(client, server):
        raise EngineLost("stale")

    with scripted(lambda path, body: (200, {})) as url, pytest.raises(EngineLost, match="stale"):
        finish([url], Sampling(), 1, refresh)


@pytest.mark.parametrize("url", ["localhost:8000", "8000", "http://"])
def test_malformed_addresses_are_refused(url):
    with pytest.raises(UserError, match="is no address"):
        Servers([url], "", 5, 5, 4)


def test_a_missing_key_is_refused_and_not_repeated():
    with pytest.raises(UserError, match="vllm_api_key_env") as found:
        Servers(["http://127.0.0.1:1"], "sk-secret", 5, 5, 4)
    assert "sk-secret" not in str(found.value)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_only_the_newest_weights_stay_and_they_appear_whole(tmp_path):
    folder, model = WeightFolder(tmp_path / "w", adapters=False), tiny_model("qwen3")
    folder.write(model, "a-0")
    folder.write(model, "a-1")
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["a-1"] and folder.path("a-1").is_file()
    folder.remove()
    assert not (tmp_path / "w").exists()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="vllm_weights_dir"):
        WeightFolder(tmp_path / "file" / "w", adapters=False).write(tiny_model("qwen3"), "a-0")

    def full(self, folder, **_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(EngineLost, match="No space left on device"):
        WeightFolder(tmp_path / "w", adapters=False).write(tiny_model("qwen3"), "a-0")


def test_the_probe_tells_right_weights_from_others():
    model = tiny_model("qwen3")
    probe = Probe(TOKENIZER, 512, "torch.float32")
    probe.measure(Policy(model))
    assert len(probe.token_ids) == 192 and probe.expected.shape == (12,)
    assert [len(r.token_ids) for r in probe.requests()] == probe.places and probe.places[-1] == 191
    assert [r.params["logprob_token_ids"][0] for r in probe.requests()] == [probe.token_ids[i] for i in probe.places]
    right = probe.expected + 1e-4
    assert probe.check("here", right) == pytest.approx(1e-4, rel=0.1)
    one_off = right.copy()
    one_off[3] += 0.03  # a mean of 0.0026
    for found in (right + 0.01, one_off, right * np.nan):
        with pytest.raises(EngineLost, match="does not have the policy's weights"):
            probe.check("here", found)
    assert Probe(TOKENIZER, 512, "bfloat16").tolerance > probe.tolerance
    assert Probe(TOKENIZER, 512, "bfloat16", 0.5).tolerance == 0.5


def test_weights_over_nccl_reach_every_server_with_its_own_ranks():
    """vLLM's part and NCCL itself need CUDA; this is the order of the calls and who gets which rank."""
    calls = {}

    def handler(name):
        def handle(path, body):
            calls.setdefault(name, []).append((path, body))
            return 200, {}

        return handle

    class Engine:
        def send_weights(self):
            client.start_weight_update()
            client.update_weights({"names": ["x"]})
            client.finish_weight_update()

    with scripted(handler("a")) as a, scripted(handler("b")) as b:
        client = _AllServers([a, b], [2, 4])
        client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7, "master_port": 1})
        NcclUpdates(Engine(), client).send("run-3")
    offsets = {name: found[0][1]["init_info"]["rank_offset"] for name, found in calls.items()}
    assert offsets == {"a": 1, "b": 3}
    paths = [path for path, _ in calls["b"]]
    assert paths == [
        "/init_weight_transfer_engine",
        "/update_weight_version",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/update_weight_version",
    ]
    assert calls["b"][1][1] == {"new_version": "incomplete"} and calls["b"][-1][1] == {"new_version": "run-3"}
    assert vllm_nccl._own_address(a) == "127.0.0.1"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_servers_need_the_engine_and_limits_need_to_be_positive():
    with pytest.raises(UserError, match="engine: vllm"):
        EngineConfig(vllm_servers=["http://127.0.0.1:1"])
    for name in ("vllm_timeout_s", "vllm_wait_s", "vllm_memory"):
        with pytest.raises(UserError, match=name):
            EngineConfig(**{name: 0})


def test_weights_rest_in_memory_only_when_every_server_is_here(tmp_path):
    local = EngineConfig("vllm", ["http://127.0.0.1:1", "http://localhost:2"])
    assert tmp_path not in weights_folder(local, str(tmp_path)).parents
    assert weights_folder(local, str(tmp_path)) == weights_folder(local, str(tmp_path))
    assert weights_folder(local, str(tmp_path)) != weights_folder(local, str(tmp_path / "x"))
    far = EngineConfig("vllm", ["http://127.0.0.1:1", "http://node2:2"])
    assert weights_folder(far, str(tmp_path)) == tmp_path / "vllm_weights"
    named = EngineConfig("vllm", vllm_weights_dir=str(tmp_path / "here"))
    mine, other = weights_folder(named, "elsewhere"), weights_folder(named, "there")
    assert mine.parent == other.parent == tmp_path / "here" and mine != other  # each is emptied by its own run alone


def test_the_server_is_started_for_training_and_options_take_the_place_of_defaults():
    line = serve.command(["model", "--port", "8001", "--max-logprobs=5"])
    assert line[3:8] == ["serve", "model", "--port", "8001", "--max-logprobs=5"]
    assert "--enable-scale-out" in line and line[line.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert "--max-logprobs" not in line
    environment = serve.environment()
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["PYTHONPATH"].split(":")[0].endswith("vllm_server")

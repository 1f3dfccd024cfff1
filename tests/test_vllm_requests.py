"""The vLLM engine without vLLM: answers are read, requests go to the servers that answer, weights reach all of them."""

import pytest

from alignment.errors import EngineLost, UserError
from alignment.rollout import vllm_nccl
from alignment.rollout.vllm_nccl import NcclUpdates, _AllServers
from alignment.rollout.vllm_servers import ServerDown, Servers, read_answer
from alignment.types import Sampling
from tests.vllm_scripted import MINUS, reply, samples, scripted

# --- answers and servers ----------------------------------------------------------------------------------------------


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


# --- weights over NCCL ------------------------------------------------------------------------------------------------


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

"""The vLLM engine without vLLM: one sample's requests, the weights it hands over, and its settings."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError
from transformers import PreTrainedModel

from alignment.errors import EngineLost, UserError
from alignment.models import Policy
from alignment.rollout.vllm_local import LocalBackend
from alignment.rollout.vllm_sample import Answer
from alignment.rollout.vllm_server import serve
from alignment.rollout.vllm_weights import Probe, WeightFolder
from alignment.types import Sampling
from recipes.engines import EngineConfig, weights_folder
from tests.tiny import tiny_model
from tests.vllm_scripted import MINUS, THINKING, TOKENIZER, samples

OPEN, CLOSE = (TOKENIZER.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))
ROOM = len(THINKING.stop_ids)


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

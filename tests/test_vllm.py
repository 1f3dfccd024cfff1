"""The vLLM engine against real servers: the same greedy samples as the embedded engine, weights that arrive or stop the
run, and servers that die. `make test-vllm` runs these."""

import copy
import signal
import threading
import time
from dataclasses import replace

import httpx2
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from alignment.errors import EngineLost, UserError
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.models.teacher import IDS, LOG_P, LocalTeacher
from alignment.models.teacher_server import VllmTeacher
from alignment.packing import group
from alignment.rollout import TransformersEngine
from alignment.rollout.episodes import EpisodeEngine
from alignment.rollout.vllm_engine import ServerBackend, VllmEngine
from alignment.rollout.vllm_servers import Servers
from alignment.rollout.vllm_weights import WeightFolder
from alignment.types import Prompt, Sampling, Segment
from recipes.tools import calculator
from tests.episodes import calling_model
from tests.episodes import prompts as episode_prompts
from tests.tiny import tiny_tokenizer
from tests.vllm_servers import SHAPE, running, start_model

pytestmark = pytest.mark.vllm
TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id
OPEN = TOKENIZER.convert_tokens_to_ids("<think>")
GREEDY = Sampling(max_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def processes():
    return running()


def make(processes, folder, model, *names, wait_s=60.0, timeout_s=60.0, adapters=False):
    servers = Servers([processes[name].url for name in names or ("first",)], "", timeout_s, wait_s, 16)
    return VllmEngine(ServerBackend(servers, folder / "weights", adapters), Policy(model), TOKENIZER)


@pytest.fixture
def moved():
    """A model that is not the one the servers were started with."""
    return shifted(start_model(), 1)


def shifted(model, seed, scale=0.03):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * scale)
    return model


def prompts(lengths=(3, 17, 200, 9)):
    """One is longer than a block of the prefix cache."""
    rng = np.random.default_rng(0)
    return [Prompt(f"p{i}", [], rng.integers(5, 300, n).tolist()) for i, n in enumerate(lengths)]


def summary(groups):
    return [[(r.token_ids, r.finish_reason, r.text, r.loss_mask) for r in g] for g in groups]


def assert_same(ours, embedded):
    assert summary(ours) == summary(embedded)
    for mine, theirs in zip([r for g in ours for r in g], [r for g in embedded for r in g], strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=2e-4)
        assert (mine.kept is None) == (theirs.kept is None)


# --- what it samples --------------------------------------------------------------------------------------------------


def test_greedy_samples_are_those_of_the_embedded_engine_and_follow_the_weights(processes, tmp_path, moved):
    engine, embedded = make(processes, tmp_path, moved), TransformersEngine(moved, TOKENIZER)
    seen = []
    for step in range(3):
        ours = engine.generate(prompts(), 1, GREEDY)
        assert_same(ours, embedded.generate(prompts(), 1, GREEDY))
        assert {r.policy_step for g in ours for r in g} == {step}
        assert max(engine.backend.mismatch.values()) < 1e-4
        seen.append(summary(ours))
        shifted(moved, seed=10 + step)
        engine.load_weights(Policy(moved), step + 1)
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_stop_tokens_stop_strings_limits_and_budgets_are_those_of_the_embedded_engine(processes, tmp_path, moved):
    engine, embedded = make(processes, tmp_path, moved), TransformersEngine(moved, TOKENIZER)
    free = embedded.generate(prompts(), 1, GREEDY)
    stop_token = free[0][0].token_ids[5]
    piece = TOKENIZER.decode(free[1][0].token_ids[3:5])
    thinking = [Prompt("t0", [], [*prompts()[0].token_ids, OPEN]), replace(prompts()[1], thinking_budget=3)]
    room = len(engine.thinking.stop_ids)
    cases = [
        (prompts(), replace(GREEDY, stop_token_ids=(stop_token,))),
        (prompts(), replace(GREEDY, stop=(piece,))),
        ([replace(p, max_tokens=7) for p in prompts()], GREEDY),
        (prompts((490, 5)), replace(GREEDY, max_tokens=100)),  # cut at the longest sequence
        (thinking, replace(GREEDY, max_tokens=room + 20, thinking_budget=6)),
        (thinking, replace(GREEDY, max_tokens=room + 20, thinking_budget=0)),
    ]
    embedded.longest = engine.longest
    reasons = set()
    for asked, sampling in cases:
        ours = engine.generate(asked, 1, sampling)
        assert_same(ours, embedded.generate(asked, 1, sampling))
        reasons |= {r.finish_reason for g in ours for r in g}
    assert reasons >= {"stop", "length"}
    ours = engine.generate(thinking, 1, cases[4][1])
    inserted = [t for t, drawn in zip(ours[0][0].token_ids, ours[0][0].loss_mask) if not drawn]
    assert inserted == engine.thinking.stop_ids
    assert np.isnan(ours[0][0].logprobs).sum() == room


FILTERS = [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_k": 20, "top_p": 0.9}, {"top_p": 0.6}, {"min_p": 0.4}]


def test_logprobs_and_kept_sets_are_those_of_the_distribution_really_sampled_from(processes, tmp_path, moved):
    engine, policy = make(processes, tmp_path, moved), Policy(moved)
    for filters in FILTERS:
        sampling = Sampling(max_tokens=20, seed=3, **filters)
        groups = engine.generate(prompts(), 3, sampling)
        trees = []
        for g in groups:
            scored = [np.ones(len(r.token_ids), dtype=bool) for r in g]
            children = [Segment(r.token_ids, scored=s, kept=r.kept) for r, s in zip(g, scored, strict=True)]
            trees.append(group(g[0].prompt.token_ids, children))
        add_logprobs(policy, trees, "ours", 4096, sampling.temperature)
        for g, tree in zip(groups, trees, strict=True):
            for rollout, segment in zip(g, tree.segments[1:], strict=True):
                np.testing.assert_allclose(segment.columns["ours"], rollout.logprobs, atol=2e-4)
                assert rollout.kept is None or all(t in k for t, k in zip(rollout.token_ids, rollout.kept))
        if filters == {"top_k": 5}:
            assert max(len(k) for g in groups for r in g for k in r.kept) == 5


def test_samples_have_the_policys_distribution(processes, tmp_path, moved):
    prompt, n = prompts()[0], 600
    (rollouts,) = make(processes, tmp_path, moved).generate([prompt], n, Sampling(max_tokens=1, top_k=4, seed=1))
    counts = np.bincount([r.token_ids[0] for r in rollouts], minlength=len(TOKENIZER))
    logits = moved(torch.tensor([prompt.token_ids])).logits[0, -1]
    top = logits.topk(4)
    expected = top.values.softmax(-1).detach().numpy() * n
    observed = counts[top.indices.numpy()]
    assert observed.sum() == n
    assert ((observed - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


def test_a_sample_does_not_depend_on_neighbours_or_servers(processes, tmp_path, moved):
    engine = make(processes, tmp_path, moved, "first", "second")
    sampling = Sampling(max_tokens=16, seed=5)
    together = summary(engine.generate(prompts(), 4, sampling, step=7))
    assert len({ids for g in together for ids, *_ in [(tuple(i), *r) for i, *r in g]}) == 16
    alone = [summary(engine.generate([p], 2, sampling, step=7))[0] for p in prompts()[::-1]][::-1]
    assert alone == [g[:2] for g in together]
    assert summary(engine.generate(prompts(), 4, sampling, step=8)) != together
    assert summary(engine.generate(prompts(), 4, replace(sampling, seed=6), step=7)) != together


def test_truncation_that_the_server_does_not_tell_enough_about_is_refused(processes, tmp_path, moved):
    engine = make(processes, tmp_path, moved)
    engine.backend.info = replace(engine.backend.info, most_logprobs=32)
    with pytest.raises(UserError, match="Set top_k to 24 or less"):
        engine.generate(prompts(), 1, Sampling(max_tokens=4, top_p=0.999, seed=0))
    with pytest.raises(UserError, match="max_prompt_length"):
        engine.generate(prompts((600,)), 1, GREEDY)


def test_episodes_with_tools_are_those_of_the_embedded_engine(processes, tmp_path):
    model = calling_model(**SHAPE)
    engine, embedded = make(processes, tmp_path, model), TransformersEngine(model, TOKENIZER)
    tools = {"calculator": lambda arguments: calculator(**arguments)}
    sampling = Sampling(max_tokens=220, temperature=0.0, stop_token_ids=(END,))
    episodes = [
        EpisodeEngine(inner, TOKENIZER, lambda prompt: tools, engine.longest).generate(episode_prompts(), 1, sampling)
        for inner in (engine, embedded)
    ]
    assert_same(*episodes)
    assert [r.messages for g in episodes[0] for r in g] == [r.messages for g in episodes[1] for r in g]
    assert any(m["role"] == "tool" for g in episodes[0] for r in g for m in r.messages)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_server_with_other_weights_stops_the_run(processes, tmp_path, moved, monkeypatch):
    engine, write = make(processes, tmp_path, moved), WeightFolder.write
    with monkeypatch.context() as patch:
        patch.setattr(WeightFolder, "write", lambda self, model, v: write(self, shifted(copy.deepcopy(model), 3), v))
        with pytest.raises(EngineLost, match="does not have the policy's weights"):
            engine.load_weights(Policy(moved), 1)
    engine.load_weights(Policy(moved), 2)
    assert_same(
        engine.generate(prompts(), 1, GREEDY), TransformersEngine(moved, TOKENIZER).generate(prompts(), 1, GREEDY)
    )


def test_a_half_loaded_model_stops_the_run(processes, tmp_path, moved, monkeypatch):
    engine = make(processes, tmp_path, moved)
    shifted(moved, 5)

    def half(self, model, version):
        written = self.folder / version
        model.save_pretrained(written)
        tensors = load_file(written / "model.safetensors")
        save_file({name: x for name, x in tensors.items() if "layers.1." not in name}, written / "model.safetensors")

    monkeypatch.setattr(WeightFolder, "write", half)
    with pytest.raises(EngineLost, match="does not have the policy's weights"):
        engine.load_weights(Policy(moved), 1)


def test_a_server_that_lost_its_weights_meanwhile_gets_them_again(processes, tmp_path, moved, capsys):
    engine = make(processes, tmp_path, moved)
    before = summary(engine.generate(prompts(), 2, replace(GREEDY, temperature=1.0, seed=2)))
    other = make(processes, tmp_path / "other", start_model())  # another run takes the server
    other.generate(prompts(), 1, GREEDY)
    assert summary(engine.generate(prompts(), 2, replace(GREEDY, temperature=1.0, seed=2))) == before
    assert "its weights are" in capsys.readouterr().out


def test_adapters_are_swapped(processes, tmp_path):
    model = get_peft_model(
        start_model(), LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    engine = make(processes, tmp_path, model, "lora", adapters=True)
    embedded = TransformersEngine(model, TOKENIZER)
    seen = []
    for step in range(3):
        assert_same(ours := engine.generate(prompts(), 1, GREEDY), embedded.generate(prompts(), 1, GREEDY))
        seen.append(summary(ours))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter.data, std=0.3, generator=torch.Generator().manual_seed(step))
        engine.load_weights(Policy(model), step + 1)
    assert seen[0] != seen[1] != seen[2]
    assert not list((tmp_path / "weights").rglob("model.safetensors"))
    with pytest.raises(UserError, match="--enable-lora"):
        make(processes, tmp_path / "none", model, "first", adapters=True)


def test_a_teacher_behind_a_real_server_is_the_teacher_in_this_process(processes, tmp_path, moved):
    make(processes, tmp_path, moved)
    rng = np.random.default_rng(1)
    answers = [rng.integers(5, 300, 12).tolist() for _ in prompts()]
    trees = [group(p.token_ids, [Segment(ids, scored=np.ones(12, dtype=bool))]) for p, ids in zip(prompts(), answers)]
    served = copy.deepcopy(trees)
    VllmTeacher(f"{processes['first'].url}/v1", len(TOKENIZER)).add_top_k(served, 6, 1.0)
    LocalTeacher(Policy(moved), len(TOKENIZER)).add_top_k(trees, 6, 1.0)
    for mine, theirs in zip(served, trees, strict=True):
        ours, local = mine.segments[1].columns, theirs.segments[1].columns
        assert (ours[IDS] == local[IDS]).mean() > 0.97  # close ones may swap
        np.testing.assert_allclose(ours[LOG_P], local[LOG_P], atol=2e-3)


# --- servers that die -------------------------------------------------------------------------------------------------


def requests_of(process):
    """Completions that a server has finished."""
    text = httpx2.get(f"{process.url}/metrics", trust_env=False).text
    return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith("vllm:request_success_total"))


def in_the_background(action):
    result = []
    thread = threading.Thread(target=lambda: result.append(action()))
    thread.start()
    return thread, result


def test_a_killed_server_loses_nothing_and_gets_the_weights_when_it_is_back(processes, tmp_path, moved, capsys):
    engine = make(processes, tmp_path, moved, "first", "second")
    sampling = Sampling(max_tokens=150, seed=1)
    undisturbed = summary(engine.generate(prompts(), 12, sampling))
    second = processes["second"]
    thread, result = in_the_background(lambda: engine.generate(prompts(), 12, sampling))
    time.sleep(0.3)
    second.kill()
    thread.join()
    assert summary(result[0]) == undisturbed
    assert "is out" in capsys.readouterr().out
    shifted(moved, 2)
    engine.load_weights(Policy(moved), 1)  # goes to the one that is left
    second.start()
    second.wait()
    while engine.backend.servers.servers[1].problem:
        engine.generate(prompts(), 2, sampling)
        time.sleep(0.2)
    done = requests_of(second)
    ours = engine.generate(prompts(), 4, GREEDY)
    assert_same(ours, TransformersEngine(moved, TOKENIZER).generate(prompts(), 4, GREEDY))
    assert requests_of(second) > done


def test_a_server_that_stalls_is_left_for_another(processes, tmp_path, moved):
    engine = make(processes, tmp_path, moved, "first", "second", timeout_s=8.0)
    sampling = Sampling(max_tokens=20, seed=1)
    expected = summary(engine.generate(prompts(), 4, sampling))
    processes["second"].signal(signal.SIGSTOP)
    try:
        assert summary(engine.generate(prompts(), 4, sampling)) == expected
        assert engine.backend.servers.servers[1].problem
    finally:
        processes["second"].signal(signal.SIGCONT)


def test_without_any_server_the_wait_is_bounded(processes, tmp_path, moved):
    engine = make(processes, tmp_path, moved, "second", wait_s=1.0, timeout_s=2.0)
    processes["second"].signal(signal.SIGSTOP)
    try:
        with pytest.raises(EngineLost, match="no vLLM server has answered for 1 s"):
            engine.generate(prompts(), 1, GREEDY)
    finally:
        processes["second"].signal(signal.SIGCONT)

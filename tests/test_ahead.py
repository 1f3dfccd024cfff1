"""One step off-policy, and a run whose engine is lost: what is trained on, and what a checkpoint holds."""

import time

import numpy as np
import pytest
import torch

from alignment.accelerator import make_accelerator
from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.checkpoint import checkpoints
from alignment.config import TrainConfig
from alignment.data.curriculum import Curriculum
from alignment.errors import EngineLost, UserError
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.rollout import TransformersEngine
from alignment.rollout.ahead import Ahead
from alignment.trainer import Evaluation, Trainer
from alignment.types import Prompt, Sampling
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import weights_hash
from tests.training_grpo import Apart

PROMPTS = [Prompt(f"p{i}", [], np.random.default_rng(i).integers(5, 300, 6).tolist()) for i in range(6)]


def by_token(rollouts):
    for r in rollouts:
        r.reward = float(r.token_ids[0] % 5)
    return {}


def mostly_flat(rollouts):
    """Groups without signal, but for two prompts: every step has to sample others as well."""
    for r in rollouts:
        r.reward = float(r.token_ids[0] % 5) if r.prompt.id in ("p2", "p5") else 1.0
    return {}


def run(folder, steps, engine_settings=None, evaluation=None, **settings):
    policy = Policy(tiny_model("qwen3"))
    engine = Apart(policy, **(engine_settings or {}))
    config = GrpoConfig(**{"prompts_per_step": 3, "group_size": 4, "async_rollouts": 1, **settings})
    curriculum = Curriculum([p.id for p in PROMPTS], "variance", seed=0)
    sampling = Sampling(max_tokens=6, seed=3)
    score = mostly_flat if config.resample_prompts else by_token
    algorithm = Grpo(policy, engine, PROMPTS, score, curriculum, config, sampling, steps=4)
    train = TrainConfig(output_dir=str(folder), learning_rate=3e-3, save_every=1, keep_checkpoints=9)
    Trainer(make_accelerator(train), policy, tiny_tokenizer(), algorithm, train, steps, evaluation).train()
    return policy, engine


def lines(folder, name):
    return [line[name] for line in read_metrics(folder / "metrics.jsonl", "train")]


def test_rollouts_are_one_update_old_and_weighted_for_it(tmp_path):
    _, engine = run(tmp_path, 4)
    assert engine.asked == 4  # nothing is sampled behind the last step
    assert lines(tmp_path, "policy_lag") == [0, 1, 1, 1]
    outside, ratios = lines(tmp_path, "sampler_ratio/outside"), lines(tmp_path, "sampler_ratio/mean")
    assert ratios[0] == pytest.approx(1, abs=1e-4) and outside[0] == 0
    assert max(outside[1:]) > 0 and all(abs(r - 1) > 1e-4 for r in ratios[1:])


@pytest.mark.parametrize("settings", [{}, {"mini_batches": 3, "old_logprobs": "recompute"}, {"resample_prompts": 2}])
def test_a_resumed_run_trains_on_the_same_samples(tmp_path, settings):
    straight, _ = run(tmp_path / "a", 4, **settings)
    run(tmp_path / "b", 2, **settings)
    resumed, engine = run(tmp_path / "b", 4, **settings)
    assert weights_hash(resumed) == weights_hash(straight)
    if not settings:
        assert engine.asked == 1  # the episode in flight was saved: only the last one is sampled anew


def test_on_another_number_of_ranks_the_episode_in_flight_is_sampled_anew():
    engine = Apart(Policy(tiny_model("qwen3")))
    ahead = Ahead(engine, PROMPTS, 2, Sampling(max_tokens=4, seed=3))
    ahead.start(1, [4, 0, 2])
    state = ahead.state_dict()
    ahead.load_state_dict({**state, "ranks": 2, "groups": state["groups"][:2]})  # as one of two ranks saved it
    everywhere, groups = ahead.take(1)
    assert everywhere == [4, 0, 2]
    assert [g[0].prompt.id for g in groups] == ["p4", "p0", "p2"] and engine.asked == 2


def test_the_first_mini_batch_measures_the_mismatch_and_later_ones_do_not(tmp_path):
    run(tmp_path, 2, mini_batches=3, async_rollouts=0)
    assert lines(tmp_path, "sampler_ratio/mean") == pytest.approx([1, 1], abs=1e-4)
    assert all(abs(ratio - 1) > 1e-4 for ratio in lines(tmp_path, "ratio/mean"))


def test_an_engine_lost_while_sampling_leaves_a_checkpoint_that_goes_on_exactly(tmp_path):
    straight, _ = run(tmp_path / "a", 4, async_rollouts=0, resample_prompts=2)
    with pytest.raises(EngineLost, match="Everything up to step 1 is saved"):
        run(tmp_path / "b", 4, {"lost": 5}, async_rollouts=0, resample_prompts=2)  # in the second step's last round
    assert checkpoints(tmp_path / "b" / "checkpoints")[-1].name == "step-00000001"
    resumed, _ = run(tmp_path / "b", 4, async_rollouts=0, resample_prompts=2)
    assert weights_hash(resumed) == weights_hash(straight)


def test_an_engine_lost_while_it_takes_weights_keeps_the_step(tmp_path):
    straight, _ = run(tmp_path / "a", 4, async_rollouts=0)
    with pytest.raises(EngineLost, match="Everything up to step 2 is saved"):
        run(tmp_path / "b", 4, {"deaf": 1}, async_rollouts=0)
    resumed, _ = run(tmp_path / "b", 4, async_rollouts=0)
    assert weights_hash(resumed) == weights_hash(straight)


def test_an_engine_lost_one_step_ahead_is_told_of_behind_the_step(tmp_path):
    with pytest.raises(EngineLost, match="Everything up to step 2 is saved"):
        run(tmp_path, 4, {"lost": 2})
    policy, engine = run(tmp_path, 4)
    assert engine.asked == 2 and lines(tmp_path, "policy_lag")[-2:] == [0, 1]
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_an_engine_lost_in_an_evaluation_keeps_the_step(tmp_path):
    def lost():
        raise EngineLost("no server")

    with pytest.raises(EngineLost, match="Everything up to step 2 is saved"):
        run(tmp_path, 2, evaluation=Evaluation(lost), async_rollouts=0)


def test_an_engine_is_never_asked_by_two_at_once(tmp_path, monkeypatch):
    """Rounds that replace groups without signal end before the next step's samples are begun."""
    asked, most, generate = [], [], Apart.generate

    def counted(self, *arguments):
        asked.append(1)
        most.append(len(asked))
        try:
            time.sleep(0.05)
            return generate(self, *arguments)
        finally:
            asked.pop()

    monkeypatch.setattr(Apart, "generate", counted)
    run(tmp_path, 4, resample_prompts=3)
    assert len(most) > 4 and max(most) == 1


def test_the_embedded_engine_cannot_sample_ahead():
    policy = Policy(tiny_model("qwen3"))
    engine = TransformersEngine(policy.model, tiny_tokenizer())
    curriculum = Curriculum([p.id for p in PROMPTS], "random", seed=0)
    config = GrpoConfig(prompts_per_step=3, group_size=4, async_rollouts=1)
    with pytest.raises(UserError, match="engine: vllm"):
        Grpo(policy, engine, PROMPTS, by_token, curriculum, config, Sampling(max_tokens=6))
    with pytest.raises(UserError, match="async_rollouts"):
        GrpoConfig(async_rollouts=2)

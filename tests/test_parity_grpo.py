"""GRPO follows TRL's GRPOTrainer: loss, gradient norm and weights, over several generations.

TRL samples for real; its reward function, a public contract, writes down prompts, completions and rewards. The same
completions and rewards then come out of a scripted engine here, whose log-probabilities stem from a plain forward of an
ordinary model. What is compared: everything from rewards to weights.

Where the definitions differ:
- TRL divides by (deviation + 1e-4), here by the deviation, with exactly 0 for a group whose rewards are all equal. The
  cases that divide have rewards in the thousands, where 1e-4 is below float32's rounding.
- With gradient accumulation TRL's `bnpo` divides each micro-batch by its own tokens, and its entropy bonus is a mean
  per micro-batch; here both are divided by the tokens of the whole update, as TRL's `dapo` is. Without accumulation
  they agree.
- With several mini-batches per generation (steps_per_generation) TRL shuffles single completions, and `dapo` divides by
  the mean number of tokens of the mini-batches; here they hold whole groups and divide by their own. Not compared.
- The KL term: see test_kl_to_a_reference. Completions without loss: see the tests at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.data.curriculum import Curriculum
from alignment.data.prompts import build_prompts
from alignment.models import Policy
from alignment.types import FinishReason, Rollout, Sampling
from tests.parity import CLIP, assert_same_curve, assert_same_weights, run_ours, trained, trl_log, trl_settings
from tests.tiny import tiny_model, tiny_tokenizer

GROUP, LENGTH, GENERATIONS = 4, 12, 3
STOP = [*range(63), tiny_tokenizer().eos_token_id]
QUESTIONS = ["What is 2 + 3?", "A baker has 48 cakes and sells half of them; how many are left?", "Hi"]
ROWS = [{"id": f"q{i}", "prompt": [{"role": "user", "content": q}]} for i, q in enumerate(QUESTIONS)]

Reward = Callable[[str, list[int]], float | None]
Completion = tuple[list[int], float | None]  # its tokens and its reward
Generation = dict[str, list[Completion]]  # by the prompt's id


def by_tokens(prompt_id: str, token_ids: list[int]) -> float | None:
    """Spreads within every group, and is exact in float32."""
    return float(sum(token_ids) % 8) / 4 + len(token_ids) / 8


def start_model(seed: int = 0):
    """Almost uniform over its 512 tokens, so one in eight ends a completion; the others are cut at LENGTH."""
    model = tiny_model("qwen3", seed=seed)
    model.generation_config.eos_token_id = STOP
    return model


class Recorder:
    """A reward function in TRL's signature that keeps every generation it is asked to score."""

    __name__ = "recorder"

    def __init__(self, reward: Reward):
        self.reward = reward
        self.generations: list[Generation] = []

    def __call__(self, prompts, completions, completion_ids, id, **columns) -> list[float | None]:
        rewards = [self.reward(prompt_id, ids) for prompt_id, ids in zip(id, completion_ids, strict=True)]
        generation: Generation = {}
        for prompt_id, ids, reward in zip(id, completion_ids, rewards, strict=True):
            generation.setdefault(prompt_id, []).append((ids, reward))
        self.generations.append(generation)
        return rewards


class Replay:
    """An engine that hands out recorded completions with the log-probabilities of an ordinary model."""

    def __init__(self, generations: list[Generation], model):
        self.generations, self.model = generations, copy.deepcopy(model)

    def generate(self, prompts, n, sampling, step=0):
        groups = []
        for prompt in prompts:
            group = []
            for i, (ids, reward) in enumerate(self.generations[step][prompt.id]):
                reason: FinishReason = "stop" if ids[-1] in STOP else "length"
                logprobs = self.logprobs(prompt.token_ids, ids, sampling.temperature)
                group.append(Rollout(prompt, i, ids, logprobs, "", reason, step, reward=reward))
            assert len(group) == n
            groups.append(group)
        return groups

    @torch.no_grad()
    def logprobs(self, prompt_ids, ids, temperature):
        logits = self.model(input_ids=torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
        return (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), ids].tolist()

    def load_weights(self, model, step):
        self.model.load_state_dict(model.model.state_dict())


def run_trl(
    folder, start, reward: Reward = by_tokens, accumulate=1, generations=GENERATIONS, clip: float = CLIP, **settings
) -> tuple[GRPOTrainer, list[Generation]]:
    """A finished trainer and the generations it sampled."""
    updates = settings.get("num_iterations", 1)
    size = {
        "per_device_train_batch_size": GROUP * len(ROWS) // accumulate,
        "gradient_accumulation_steps": accumulate,
        "num_generations": GROUP,
        "max_completion_length": LENGTH,
        "shuffle_dataset": False,
        "scale_rewards": "none",
    }
    arguments = GRPOConfig(**(trl_settings(folder, generations * updates, clip) | size | settings))
    recorder = Recorder(reward)
    trainer = GRPOTrainer(
        copy.deepcopy(start),
        recorder,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer, recorder.generations


def run_grpo(
    folder, start, generations, temperature=1.0, reference=None, max_tokens=16384, clip: float = CLIP, **settings
):
    """The trained policy and its metrics, one line per generation."""
    policy = Policy(copy.deepcopy(start))
    prompts = build_prompts(ROWS, tiny_tokenizer(), max_prompt_length=100)
    config = GrpoConfig(**{"prompts_per_step": len(ROWS), "group_size": GROUP, "divide_by_std": False, **settings})
    algorithm = Grpo(
        policy,
        Replay(generations, start),
        prompts,
        lambda rollouts: {},
        Curriculum([p.id for p in prompts], "random", seed=0),
        config,
        Sampling(max_tokens=LENGTH, temperature=temperature),
        None if reference is None else Policy(reference),
    )
    return policy, run_ours(folder, len(generations), policy, algorithm, max_tokens, clip)


def mean_of_updates(lines: list[dict[str, float]], updates: int) -> list[dict[str, float]]:
    """One line per generation, as the metrics here have it, from TRL's one line per update."""
    groups = [lines[i : i + updates] for i in range(0, len(lines), updates)]
    return [{k: sum(x[k] for x in g) / updates for k in g[0] if all(k in x for x in g)} for g in groups]


def compare(
    folder, trl: dict[str, Any], ours: dict[str, Any], reward: Reward = by_tokens, max_tokens=16384, start=None
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Both runs from the same weights; returns the metrics of both, one line per generation."""
    start = start or start_model()
    trainer, generations = run_trl(folder / "trl", start, reward, **trl)
    policy, metrics = run_grpo(folder / "ours", start, generations, max_tokens=max_tokens, **ours)
    theirs = mean_of_updates(trl_log(trainer), trl.get("num_iterations", 1))
    assert_same_curve(metrics, theirs)
    assert_same_weights(policy.model, trained(trainer), start, atol=1e-5)
    return metrics, theirs


NORMALISATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dapo": ({"loss_type": "dapo"}, {"loss": "token"}),
    "bnpo": ({"loss_type": "bnpo"}, {"loss": "token"}),
    "grpo": ({"loss_type": "grpo"}, {"loss": "sequence_mean"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"loss": "constant"}),
    "gspo": ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"loss": "gspo"}),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_every_normalisation(tmp_path, name):
    trl, ours = NORMALISATIONS[name]
    metrics, theirs = compare(tmp_path, trl, ours)
    for a, b in zip(metrics, theirs, strict=True):
        assert a["reward"] == pytest.approx(b["reward"])
        assert a["entropy"] == pytest.approx(b["entropy"], rel=1e-5)
        assert a["completion_length/mean"] == pytest.approx(b["completions/mean_length"])
        assert a["truncated"] == pytest.approx(b["completions/clipped_ratio"])


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr_grpo"])
def test_gradient_accumulation_against_a_small_token_budget(tmp_path, name):
    trl, ours = NORMALISATIONS[name]
    compare(tmp_path, {**trl, "accumulate": 3}, ours, max_tokens=60)


@pytest.mark.parametrize("name", ["dapo", "grpo", "gspo"])
def test_two_updates_per_generation_with_asymmetric_clipping(tmp_path, name):
    """The first update takes the policy far enough for both clips to bind in the second."""
    trl, ours = NORMALISATIONS[name]
    trl = {**trl, "num_iterations": 2, "epsilon": 0.1, "epsilon_high": 0.15}
    metrics, theirs = compare(tmp_path, trl, {**ours, "episode_epochs": 2, "clip_eps": 0.1, "clip_eps_high": 0.15})
    if name != "gspo":  # TRL counts completions there
        for side in ("low", "high"):
            fractions = [a[f"clip_fraction/{side}"] for a in metrics]
            assert fractions == pytest.approx([b[f"clip_ratio/{side}_mean"] for b in theirs])
            assert max(fractions) > 0.05


@pytest.mark.parametrize("name", ["dapo", "grpo", "gspo"])
def test_kl_to_a_reference(tmp_path, name):
    """k3 in the loss, against a model that differs from the policy from the first step on.

    By default TRL multiplies k3 by the importance ratio (use_bias_correction_kl, arXiv 2512.02556), which changes its
    gradient even where the ratio is 1; here k3 stands alone, as in arXiv 2402.03300, eq. 4."""
    trl, ours = NORMALISATIONS[name]
    start_model(seed=7).save_pretrained(tmp_path / "reference")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "reference")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "reference")  # its origin is TRL's reference
    start.load_state_dict(start_model().state_dict())
    trl = {**trl, "beta": 2.0, "use_bias_correction_kl": False}
    metrics, theirs = compare(tmp_path, trl, {**ours, "beta": 2.0, "reference": reference}, start=start)
    for a, b in zip(metrics, theirs, strict=True):
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-5)
        assert a["kl"] > 0.02


def test_temperature(tmp_path):
    trl = {"loss_type": "dapo", "temperature": 0.6, "num_iterations": 2}
    compare(tmp_path, trl, {"temperature": 0.6, "episode_epochs": 2})


def test_entropy_bonus(tmp_path):
    compare(tmp_path, {"loss_type": "dapo", "entropy_coef": 0.05}, {"entropy_coef": 0.05})


def test_division_by_the_deviation_of_the_group(tmp_path):
    def reward(prompt_id, ids):
        return 4096 * (by_tokens(prompt_id, ids) or 0)

    compare(tmp_path, {"loss_type": "dapo", "scale_rewards": "group"}, {"divide_by_std": True}, reward)


@pytest.mark.parametrize("divide", [False, True])
def test_a_group_without_signal_counts_in_the_normaliser(tmp_path, divide):
    """Its tokens are part of TRL's denominator; here too, though they are not computed."""

    def reward(prompt_id, ids):
        return 4096.0 if prompt_id == "q1" else 4096 * (by_tokens(prompt_id, ids) or 0)

    scale = "group" if divide else "none"
    metrics, theirs = compare(
        tmp_path, {"loss_type": "dapo", "scale_rewards": scale}, {"divide_by_std": divide}, reward
    )
    assert [a["flat_groups"] for a in metrics] == pytest.approx([1 / 3] * GENERATIONS)
    assert [b["frac_reward_zero_std"] for b in theirs] == pytest.approx([1 / 3] * GENERATIONS)


# --- completions without loss ----------------------------------------------------------------------------------------


def test_truncated_completions_without_loss_per_token(tmp_path):
    """Their rewards remain in the baseline of the group, their tokens leave the denominator, on both sides."""
    trl = {"loss_type": "dapo", "mask_truncated_completions": True}
    metrics, _ = compare(tmp_path, trl, {"mask_truncated": True})
    assert metrics[0]["truncated"] > 0


def compare_first_update(folder, trl, ours, factor: Callable[[list[Completion]], float], reward=by_tokens) -> None:
    """Loss and gradient norm of one update here are TRL's, times a factor that follows from the completions."""
    start = start_model()
    trainer, generations = run_trl(folder / "trl", start, reward, generations=1, clip=0.0, **trl)
    _, (a,) = run_grpo(folder / "ours", start, generations, clip=0.0, **ours)
    (b,) = trl_log(trainer)
    completions = [c for group in generations[0].values() for c in group]
    assert factor(completions) > 1.05
    assert a["loss"] == pytest.approx(b["loss"] * factor(completions), rel=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"] * factor(completions), rel=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_truncated_completions_without_loss_per_completion(tmp_path, name):
    """TRL divides by all completions, the masked ones included; here by those that carry loss."""
    trl, ours = NORMALISATIONS[name]

    def factor(completions):
        return len(completions) / sum(ids[-1] in STOP for ids, _ in completions)

    trl = {**trl, "mask_truncated_completions": True}
    compare_first_update(tmp_path, trl, {**ours, "mask_truncated": True}, factor)


def test_unscored_completions(tmp_path):
    """Both leave a completion without a reward out of the baseline. TRL then gives it advantage 0 and counts its
    tokens; here it carries no loss, so its tokens do not count."""

    def reward(prompt_id, ids):
        return None if len(ids) % 4 == 3 else by_tokens(prompt_id, ids)

    def factor(completions):
        return sum(len(ids) for ids, _ in completions) / sum(len(ids) for ids, r in completions if r is not None)

    compare_first_update(tmp_path, {"loss_type": "dapo"}, {}, factor, reward)

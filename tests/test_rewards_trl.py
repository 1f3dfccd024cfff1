"""Rewards travel both ways: ours run in TRL's GRPOTrainer, and one written for it runs in ours, unchanged."""

from dataclasses import dataclass, field

from datasets import Dataset

from rewards import RewardRunner, from_verifier
from tests.tiny import tiny_model, tiny_tokenizer

SEEN = []


def trl_style(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
    """Written against TRL's documentation: every argument it passes, conversational completions."""
    texts = [completion[0]["content"] for completion in completions]
    log_extra("length", [len(text) for text in texts])
    log_metric("mean_answer", sum(map(float, answer)) / len(answer))
    SEEN.append((prompts, completions, completion_ids, answer, trainer_state.global_step, sorted(kwargs)))
    return [float(len(ids)) if "q" not in text else None for ids, text in zip(completion_ids, texts, strict=True)]


async def trl_style_async(completions, **kwargs):
    return [0.5] * len(completions)


def rows():
    return [{"prompt": [{"role": "user", "content": f"{i} + 1?"}], "answer": str(i + 1)} for i in range(4)]


def test_our_rewards_run_in_trls_trainer_next_to_its_own(tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    SEEN.clear()
    tokenizer = tiny_tokenizer()
    settings = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, use_cpu=True,
        max_completion_length=4, report_to="none", logging_steps=1, save_strategy="no", bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=tiny_model("qwen3"),
        reward_funcs=[from_verifier("math"), from_verifier("format"), trl_style, trl_style_async],
        args=settings, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    logs = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert logs["rewards/math/mean"] == 0.0 and logs["rewards/format/mean"] == 0.0
    assert logs["rewards/trl_style_async/mean"] == 0.5
    assert 0.0 <= logs["verdicts/math/unparsed"] <= 1.0 and logs["verdicts/format/error"] == 0.0
    assert len(SEEN) == 1


@dataclass
class P:
    messages: list
    row: dict


@dataclass
class R:
    prompt: P
    text: str
    token_ids: list
    policy_step: int = 3
    reward: float | None = None
    reward_terms: dict = field(default_factory=dict)


def test_a_reward_written_for_trl_runs_in_our_runner():
    SEEN.clear()
    batch = [R(P(row["prompt"], row), text, [1] * n) for row, text, n in zip(rows(), ["a", "b", "q", ""], [3, 2, 1, 0])]
    metrics = RewardRunner([("trl_style", trl_style, 1.0), ("async", trl_style_async, 2.0)], 20.0)(batch)
    assert [r.reward for r in batch] == [4.0, 3.0, 1.0, 1.0]
    assert metrics["mean_answer"] == 2.5 and metrics["unscored/trl_style/none"] == 1
    prompts, completions, completion_ids, answer, step, others = SEEN[0]
    assert prompts[0] == [{"role": "user", "content": "0 + 1?"}] and completions[1] == [
        {"role": "assistant", "content": "b"}
    ]
    assert completion_ids[0] == [1, 1, 1] and answer == ["1", "2", "3", "4"] and step == 3 and others == []

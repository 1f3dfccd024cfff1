"""What a run that goes on makes up for, refuses, and takes from its own settings."""

import json
import math

import pytest
import torch

from alignment.accelerator import make_accelerator
from alignment.algorithms.sft import Sft
from alignment.checkpoint import checkpoints
from alignment.config import TrainConfig
from alignment.errors import EngineLost, UserError
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.trainer import Evaluation, Trainer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import rows, train


def trainer_of(folder, evaluation=None, steps=2, algorithm=None, **settings):
    config = TrainConfig(output_dir=str(folder), **settings)
    policy = Policy(tiny_model("qwen3"))
    algorithm = algorithm or Sft(rows(), 5, seed=1)
    return Trainer(make_accelerator(config), policy, tiny_tokenizer(), algorithm, config, steps, evaluation)


def test_an_evaluation_that_the_run_ended_in_is_made_up_once(tmp_path):
    done = []

    def killed():
        raise KeyboardInterrupt

    def evaluate():
        done.append(1)
        return {"loss": 1.0}

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, Evaluation(killed, "loss", higher_is_better=False)).train()
    for _ in range(2):
        trainer_of(tmp_path, Evaluation(evaluate, "loss", higher_is_better=False)).train()
    assert len(done) == 1 and (tmp_path / "best" / "config.json").is_file()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", "eval")] == [2]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"step": 2, "best": 1.0}


def test_an_evaluation_between_two_checkpoints_is_not_made_again(tmp_path):
    done = []

    def evaluate():
        done.append(1)
        return {"loss": -float(len(done))}

    settings = {"eval_every": 1, "save_every": 1}
    trainer_of(tmp_path, Evaluation(evaluate, "loss"), 2, **settings).train()
    trainer = trainer_of(tmp_path, Evaluation(evaluate, "loss"), 3, **settings)
    trainer.train()
    assert len(done) == 3 and trainer.best == -1.0


def test_a_step_whose_weights_nobody_takes_has_its_line(tmp_path):
    class Lost(Sft):
        def after_update(self, step, metrics):
            if step == 2:
                raise EngineLost("gone")

    with pytest.raises(EngineLost, match="Everything up to step 2 is saved"):
        trainer_of(tmp_path, steps=4, algorithm=Lost(rows(), 5, seed=1)).train()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", "train")] == [1, 2]


def test_a_damaged_checkpoint_that_was_named_is_refused(tmp_path):
    train(str(tmp_path), 2)
    (path,) = checkpoints(tmp_path / "checkpoints")
    (path / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"resume: .* is damaged \(optimizer.pt is missing\)"):
        trainer_of(tmp_path, resume=str(path))


def test_settings_of_the_optimizer_are_those_of_the_run_that_goes_on(tmp_path):
    train(str(tmp_path), 2, weight_decay=0.1, adam_beta2=0.95)
    trainer = trainer_of(tmp_path, steps=3, weight_decay=0.5, adam_beta2=0.999)
    trainer.train()
    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays == {0.0, 0.5} and all(group["betas"][1] == 0.999 for group in trainer.optimizer.param_groups)


def test_other_groups_of_parameters_are_refused_with_the_remedy(tmp_path):
    train(str(tmp_path), 2, weight_decay=0.1)
    with pytest.raises(UserError, match="set weight_decay to 0, or above 0, as it was"):
        trainer_of(tmp_path, steps=3, weight_decay=0.0).train()


def test_the_probe_is_measured_in_the_weights_own_precision():
    """accelerate wraps a policy that trains under `bf16`; what samples holds its weights as they are."""
    from alignment.rollout.vllm_weights import Probe

    policy, probes = Policy(tiny_model("qwen3")), []
    for bf16 in (False, True):
        if bf16:
            inner = policy.forward

            def autocast(*arguments, inner=inner, **named):
                with torch.autocast("cpu", torch.bfloat16):
                    return inner(*arguments, **named)

            policy.forward = autocast
        probe = Probe(tiny_tokenizer(), 512, "torch.float32")
        probe.measure(policy)
        probes.append(probe.expected)
    assert (probes[0] == probes[1]).all() and not math.isnan(probes[0].sum())
    assert policy.forward is autocast

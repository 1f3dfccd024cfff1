"""The Online Merging Optimizer in another trainer, as docs/dpo.md shows it."""

import copy

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from alignment.optim.online_merging import OnlineMerging, OnlineMergingConfig
from alignment.optim.task_vector import task_vector
from tests.parity import trl_settings
from tests.test_parity_dpo import BATCH, pairs
from tests.tiny import tiny_model, tiny_tokenizer


def test_trls_trainer_merges_its_steps_with_it(tmp_path):
    """One step keeps a tenth of Adam's update and another tenth of tau: 1 - 0.9 * 0.9 of the weights move."""
    start, base = tiny_model(seed=5), tiny_model(seed=1).state_dict()
    model = copy.deepcopy(start)
    parameters = list(model.named_parameters())
    vectors = {name: task_vector(name, p, base, torch.float32) for name, p in parameters if p.dim() > 1}
    merging = OnlineMergingConfig("ondare", merge_base_model="base", merge_alpha=1e-2, merge_keep=0.1)
    groups = [
        {"params": [pair for pair in parameters if pair[0] in vectors]},
        {"params": [pair for pair in parameters if pair[0] not in vectors], "merge": False},
    ]
    optimizer = OnlineMerging(groups, vectors, merging, seed=0, lr=1e-2)
    config = DPOConfig(**trl_settings(tmp_path, 1), per_device_train_batch_size=BATCH, max_length=512)
    trainer = DPOTrainer(
        model,
        copy.deepcopy(start),
        config,
        train_dataset=Dataset.from_list(pairs()),
        processing_class=tiny_tokenizer(),
        optimizers=(optimizer, None),
    )
    trainer.train()
    after = dict(model.named_parameters())
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
        moved = (after[name] != dict(start.named_parameters())[name]).float().mean()
        assert 0.17 < moved < 0.21, name
    norm = "model.norm.weight"
    assert (after[norm] != dict(start.named_parameters())[norm]).all()

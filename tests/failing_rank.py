"""A training in which rank 1 alone raises in its second step: torchrun … -m tests.failing_rank OUTPUT_DIR KIND.

KIND: input (a UserError) or crash (any other exception). Run as recipes are, by recipes.common.run.
"""

from __future__ import annotations

import sys

import torch

from alignment.algorithms.sft import Sft
from alignment.distributed import rank
from alignment.errors import UserError
from alignment.models import Policy
from recipes.common import run
from tests.tiny import tiny_model
from tests.training import rows, train


class FailsOnOneRank(Sft):
    def collect(self, step):
        if step == 1 and rank() == 1:
            raise UserError("row 7 is broken") if sys.argv[2] == "input" else ZeroDivisionError("row 7 divides by zero")
        return super().collect(step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    policy = Policy(tiny_model("qwen3", num_hidden_layers=1))
    run(lambda: train(sys.argv[1], 50, policy=policy, algorithm=FailsOnOneRank(rows(), 5, seed=1)))

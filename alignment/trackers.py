"""Experiment trackers (tensorboard, wandb, trackio), by way of accelerate."""

from __future__ import annotations

import os
from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from alignment.config import TrainConfig, as_dict
from alignment.errors import UserError
from alignment.yaml_files import did_you_mean


def check_trackers(names: Sequence[str]) -> None:
    """accelerate leaves out in silence what is not installed. Raises UserError for that and for unknown names."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    known = LoggerType.list()
    for name in names:
        if name not in known:
            raise UserError(f"report_to: {name!r} is no tracker{did_you_mean(name, known)}")
        if name not in installed:
            raise UserError(f"report_to: {name} is not installed: pip install -e '.[trackers]', or pip install {name}")


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """The project is WANDB_PROJECT or "alignment", the run's name its output_dir, its settings those of TrainConfig
    (config.json in the run's folder has all)."""
    settings = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in as_dict(config).items()}
    name = {"name": config.output_dir}
    accelerator.init_trackers(
        os.environ.get("WANDB_PROJECT", "alignment"), config=settings, init_kwargs={"wandb": name, "trackio": name}
    )

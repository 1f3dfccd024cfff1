"""Experiment trackers: told what the run is, refused when they are not there."""

from types import SimpleNamespace

import pytest
from accelerate.utils import LoggerType

from alignment.config import TrainConfig
from alignment.errors import UserError
from alignment.trackers import check_trackers, start_trackers


@pytest.mark.parametrize(
    "name, message", [("wandb", r"wandb is not installed: pip install"), ("wandbs", "'wandbs' is no tracker; did you")]
)
def test_trackers_that_are_not_there_are_named(monkeypatch, name, message):
    monkeypatch.setattr("alignment.trackers.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    check_trackers(["tensorboard"])
    with pytest.raises(UserError, match=message):
        check_trackers(["tensorboard", name])


@pytest.mark.parametrize("project", [None, "mine"])
def test_trackers_get_the_project_the_runs_name_and_its_settings(monkeypatch, project):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if project:
        monkeypatch.setenv("WANDB_PROJECT", project)
    calls = []
    accelerator = SimpleNamespace(init_trackers=lambda *args, **kwargs: calls.append((args, kwargs)))
    start_trackers(accelerator, TrainConfig(output_dir="runs/a/sft", learning_rate=2e-6))
    (((name,), told),) = calls
    assert name == (project or "alignment")
    assert told["init_kwargs"]["wandb"] == {"name": "runs/a/sft"}
    assert told["config"]["learning_rate"] == 2e-6
    assert all(isinstance(value, bool | int | float | str) for value in told["config"].values())

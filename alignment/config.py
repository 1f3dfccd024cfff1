"""The settings recipes share, and reading them from YAML and the command line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from trl import TrlParser

from alignment.errors import UserError
from alignment.yaml_files import did_you_mean, read_yaml


@dataclass
class TrainConfig:
    """How any method is trained. One step is one batch of SFT rows or pairs, or one episode of rollouts."""

    output_dir: str = field(default="", metadata={"help": "Folder of this run: checkpoints, logs, the final model."})
    seed: int = 42
    max_steps: int = field(default=0, metadata={"help": "Steps to train; 0 leaves it to the recipe's epochs."})
    learning_rate: float = 1e-6
    min_learning_rate: float = field(default=0.0, metadata={"help": "Floor that linear and cosine decay end at."})
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warm-up from 0."})
    hold_steps: int = field(default=0, metadata={"help": "Steps at the peak between warm-up and decay."})
    weight_decay: float = field(default=0.0, metadata={"help": "On matrices only, not on norms and biases."})
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    max_tokens_per_micro_batch: int = field(
        default=0,
        metadata={"help": "Tokens of one packed row. It sets memory, never the gradient. 0: 16384, on a CPU 4096."},
    )
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast; weights stay in their own type."})
    gradient_checkpointing: bool = False
    router_aux_loss_coef: float | None = field(
        default=None, metadata={"help": "Weight of the routers' load-balancing loss (MoE); default: the model's own."}
    )
    eval_every: int = field(default=0, metadata={"help": "Steps between evaluations; 0 evaluates at the end only."})
    save_every: int = field(default=0, metadata={"help": "Steps between checkpoints; 0 saves at the end only."})
    keep_checkpoints: int = 2
    resume: str = field(
        default="auto",
        metadata={"help": "auto: go on from the newest sound checkpoint in output_dir; never: start anew; or a path."},
    )
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Trackers besides metrics.jsonl: tensorboard, wandb, trackio."}
    )
    samples_per_log: int = field(default=4, metadata={"help": "Completions kept per step in samples.jsonl."})
    debug: bool = field(default=False, metadata={"help": "With --debug errors in the input show their traceback."})

    def __post_init__(self):
        if not self.output_dir:
            raise UserError("output_dir is missing: set it in the YAML file or with --output_dir runs/NAME")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "min_learning_rate", "adam_eps"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("max_steps", "warmup_steps", "hold_steps", "eval_every", "save_every", "samples_per_log"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "1 or more")
        budget = self.max_tokens_per_micro_batch
        _require(budget >= 0, "max_tokens_per_micro_batch", budget, "0 or more")
        if not budget:  # larger rows keep a GPU busy; a CPU gains nothing from them
            self.max_tokens_per_micro_batch = 16384 if torch.cuda.is_available() else 4096


def _require(condition: bool, name: str, value: Any, wanted: str) -> None:
    if not condition:
        raise UserError(f"{name}: {value} is not valid, it has to be {wanted}")


def parse(*kinds: type, arguments: Sequence[str] | None = None) -> tuple:
    """Read `--config file.yaml` and `--key value` into one instance of each dataclass.

    Raises UserError, naming the key, for unknown keys (with the nearest known one), wrong types and bad values.
    """
    arguments = [
        part
        for argument in (sys.argv[1:] if arguments is None else arguments)
        for part in (argument.split("=", 1) if argument.startswith("--config=") else [argument])
    ]
    known = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    if "--config" in arguments:
        path = Path(arguments[arguments.index("--config") + 1]) if arguments[-1] != "--config" else None
        _check_yaml(path, known)
    for argument in arguments:
        name = argument[2:].split("=", 1)[0].replace("-", "_")
        if argument.startswith("--") and name.removeprefix("no_") not in (*known, "config", "help"):
            raise UserError(f"unknown option {argument}{did_you_mean(name, known)}")
    parser = TrlParser(kinds)  # type: ignore[arg-type]
    try:
        return parser.parse_args_and_config(args=arguments)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _check_yaml(path: Path | None, known: dict[str, Any]) -> None:
    for key, value in read_yaml(path).items():
        if key == "env":
            continue
        if key not in known:
            raise UserError(f"{path}: unknown key `{key}`{did_you_mean(str(key), known)}")
        if not _fits(value, known[key]):
            raise UserError(f"{path}: `{key}: {value}` is not of type {_type_name(known[key])}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can stand for the annotated type. YAML reads 1e-6 as text, so text that is a number fits."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(v, options[0]) for v in value)
    if get_origin(hint) is dict or hint is dict:
        return isinstance(value, dict)
    if options:  # a union
        return any(_fits(value, option) for option in options)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False
        return not isinstance(value, bool) and (hint is float or number.is_integer())
    if hint is type(None):
        return value is None
    return not isinstance(hint, type) or isinstance(value, hint)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)


def as_dict(*configs: Any) -> dict[str, Any]:
    """All settings in one flat dictionary, for the run folder."""
    return {key: value for config in configs for key, value in dataclasses.asdict(config).items()}

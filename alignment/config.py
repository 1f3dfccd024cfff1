"""The settings recipes share, and reading them from YAML and the command line."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import torch
from trl import TrlParser

from alignment.errors import UserError, shorten
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
    activation_offload: bool = field(
        default=False, metadata={"help": "Checkpointed activations wait in the CPU's memory; implies checkpointing."}
    )
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
        non_negative = ("learning_rate", "min_learning_rate", "weight_decay", "max_grad_norm", "adam_eps")
        counts = ("max_steps", "warmup_steps", "hold_steps", "eval_every", "save_every", "samples_per_log")
        check_values(self, "0 or more", *non_negative, *counts, "max_tokens_per_micro_batch", "router_aux_loss_coef")
        check_values(self, "1 or more", "keep_checkpoints")
        check_values(self, "0 or more, below 1", "adam_beta1", "adam_beta2")
        check_values(self, "between 0 and 4294967295", "seed")
        if not self.max_tokens_per_micro_batch:  # larger rows keep a GPU busy; a CPU gains nothing from them
            self.max_tokens_per_micro_batch = 16384 if torch.cuda.is_available() else 4096


_RANGES: dict[str, Callable[[float], bool]] = {
    "0 or more": lambda x: x >= 0,
    "1 or more": lambda x: x >= 1,
    "2 or more": lambda x: x >= 2,
    "above 0": lambda x: x > 0,
    "between 0 and 1": lambda x: 0 <= x <= 1,
    "0 or more, below 1": lambda x: 0 <= x < 1,
    "above 0, at most 1": lambda x: 0 < x <= 1,
    "between 0 and 4294967295": lambda x: 0 <= x < 2**32,  # numpy's limit for seeds
    "a finite number": lambda x: True,
}


def check_values(config: Any, wanted: str, *names: str) -> None:
    """Raises UserError for the first of the fields that is not finite or not `wanted` (a key of _RANGES). Fields that
    are None are passed over."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not ((isinstance(value, int) or math.isfinite(value)) and _RANGES[wanted](value)):
            raise UserError(f"{name}: {shorten(value)} is not valid, it has to be {wanted}")


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        """One message, without the list of all options."""
        raise UserError(message)


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
    values: dict[str, Any] = {}
    if "--config" in arguments:
        place = arguments.index("--config")
        values = _read_settings(next(iter(arguments[place + 1 : place + 2]), None), known)
        del arguments[place : place + 2]
    for argument in arguments:
        name = argument[2:].split("=", 1)[0].replace("-", "_")
        if argument.startswith("--") and name.removeprefix("no_") not in (*known, "config", "help"):
            raise UserError(f"unknown option {shorten(argument)}{did_you_mean(name, known)}")
    parser = _Parser(kinds)  # type: ignore[arg-type]
    parser.set_defaults_with_config(**values)
    try:
        *configs, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"{shorten(rest[0])}: not an option; settings are given as `--key value`")
    return tuple(configs)


def _read_settings(path: str | None, known: dict[str, Any]) -> dict[str, Any]:
    """The values of the known keys, each in its type. The key `env` sets environment variables."""
    content = read_yaml(path)
    environment = content.pop("env", {})
    if not isinstance(environment, dict):
        raise UserError(f"{path}: `env` has to be a mapping of environment variables, got {shorten(environment)}")
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{path}: unknown key `{shorten(key)}`{did_you_mean(str(key), known)}")
        if _has_null(value):
            raise UserError(f"{path}: `{key}: {shorten(value)}` has a null character")
        if not _fits(value, known[key]):
            raise UserError(f"{path}: `{key}: {shorten(value)}` is not of type {_type_name(known[key])}")
    for key, value in environment.items():
        try:
            os.environ[str(key)] = str(value)
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: `env`: {shorten(key)} cannot be set: {error}") from error
    return {key: _in_type(value, known[key]) for key, value in content.items()}


def _has_null(value: Any) -> bool:
    """Whether a text in it has a character that no path may hold."""
    if isinstance(value, str):
        return "\0" in value
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(_has_null(part) for part in inner)


def _in_type(value: Any, hint: Any) -> Any:
    """A value that fits as a value of the type: numbers may stand as text, whole numbers as floats."""
    options = get_args(hint) or (hint,)
    if get_origin(hint) is list:
        return [_in_type(v, options[0]) for v in value]
    if value is None or get_origin(hint) is Literal or str in options or bool in options:
        return value
    if float in options:
        return float(value)
    if int in options:
        return int(value) if isinstance(value, int) or str(value).isdecimal() else int(float(value))
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can stand for the annotated type. YAML reads 1e-6 as text, so text that is a number fits."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str | int) and value in options
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
        except (TypeError, ValueError, OverflowError):
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

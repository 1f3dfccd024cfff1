"""What every recipe script does around its method: errors for people, settings on disk, evaluation by sampling."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from alignment.algorithms.rollouts import generate_together
from alignment.chat.template import stop_token_ids
from alignment.config import as_dict, check_values
from alignment.data.load import write_rows
from alignment.distributed import failure_elsewhere, gather_objects, rank, tell_failure, world_size
from alignment.errors import UserError, as_line
from alignment.evaluate import pass_rate
from alignment.types import Engine, Prompt, Rollout, Sampling
from rewards.routed_verifier import find_verifier

Score = Callable[[list[Rollout]], dict[str, float]]
LAST_S = 4.0
"""How long a rank that stops for another's failure waits for that one to end first."""


class SamplingFields(Protocol):
    """The fields of a recipe that say how completions are sampled; each is described at `Sampling`."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop: list[str]


class SamplingRecipe(SamplingFields, Protocol):
    """Also how many prompts and rows are sampled at a time."""

    max_rows: int
    max_prompt_length: int
    max_rows_in_flight: int


def check_sampling(recipe: SamplingRecipe) -> None:
    """Raises UserError for a value out of its range."""
    check_values(recipe, "1 or more", "max_tokens", "max_prompt_length", "max_rows_in_flight")
    check_values(recipe, "0 or more", "temperature", "top_k", "max_rows")
    check_values(recipe, "above 0, at most 1", "top_p")
    check_values(recipe, "between 0 and 1", "min_p")
    if "" in recipe.stop:
        raise UserError("stop: an empty text would end every completion at once; leave it out")


def make_sampling(
    recipe: SamplingFields, tokenizer: PreTrainedTokenizerBase, seed: int, thinking_budget: int | None = None
) -> Sampling:
    """The recipe's sampling; completions also end at the tokenizer's end-of-turn tokens."""
    return Sampling(
        max_tokens=recipe.max_tokens,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
        min_p=recipe.min_p,
        stop_token_ids=tuple(stop_token_ids(tokenizer)),
        stop=tuple(recipe.stop),
        seed=seed,
        thinking_budget=thinking_budget,
    )


def run(main: Callable[[], Any]) -> None:
    """Run a recipe; a UserError is printed as one message (exit code 2), with its traceback under --debug. Of several
    ranks the one that fails prints its error, and the others that they stop because of it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a script's path is its own folder: rewards of the user's are found beside her
    disable_progress_bar()  # of loading and saving weights: runs have a progress bar of their own
    try:
        main()
    except (UserError, OSError) as error:  # an OSError that nobody has put into words: a full disk, missing rights
        tell_failure(as_line(error))
        if "--debug" in sys.argv:
            raise
        print(f"error{_of_rank()}: {as_line(error)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except Exception as error:
        if isinstance(error, RuntimeError) and (elsewhere := failure_elsewhere()) is not None:
            print(f"rank {rank()} stops, since another failed. {elsewhere}", file=sys.stderr, flush=True)
            time.sleep(LAST_S)  # the launcher reports the process that ends first
            raise SystemExit(1) from None
        tell_failure(f"{type(error).__name__}: {error}")
        raise
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _of_rank() -> str:
    return f" on rank {rank()}" if world_size() > 1 else ""


def save_rows(path: str, rows: Sequence[Mapping[str, Any]], what: str) -> None:
    """Write them and say so."""
    write_rows(path, rows)
    print(f"{len(rows):,} {what} in {path}", flush=True)


def check_verifier(name: str) -> None:
    """Raises UserError for a verifier or routing file that there is not."""
    try:
        find_verifier(name)
    except ValueError as error:
        raise UserError(f"verifier: {error}") from error


def write_settings(folder: str, *configs: Any) -> None:
    """All settings of the run as config.json in its folder."""
    if rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(as_dict(*configs), indent=2, default=str))


def sample_pass_rate(
    engine: Engine, prompts: Sequence[Prompt], n: int, sampling: Sampling, score: Score, step: int = 0
) -> dict[str, float]:
    """Held-out mean reward and pass rate, with its 95 % interval clustered by problem; a reward of 1 or more passes.
    The prompts are split over the ranks, every rank gets the result."""
    groups = generate_together(engine, list(prompts)[rank() :: world_size()], n, sampling, step)
    rollouts = [r for g in groups for r in g]
    score(rollouts)
    samples = gather_objects([[r.reward for r in g] for g in groups])
    lengths = gather_objects([len(r.token_ids) for r in rollouts])
    rewards = [reward for row in samples for reward in row if reward is not None]
    if rewards:
        result = pass_rate(samples)
        value, low, high = result.value, result.low, result.high
    else:
        value = low = high = float("nan")  # nothing could be scored: the run goes on
    return {
        "pass_rate": value,
        "ci_low": low,
        "ci_high": high,
        "reward": sum(rewards) / len(rewards) if rewards else float("nan"),
        "problems": float(len(samples)),
        "samples": float(sum(len(g) for g in samples)),
        "completion_length": sum(lengths) / max(1, len(lengths)),
    }

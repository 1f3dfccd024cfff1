"""What the recipes that sample share: prompts, rewards, how completions are sampled, held-out pass rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.chat.messages import template_variables
from alignment.config import check_values
from alignment.data.load import load_rows
from alignment.data.prompts import build_prompts
from alignment.errors import UserError, about
from alignment.rollout.episodes import EpisodeEngine, EpisodeLimits
from alignment.rollout.row import check_served
from alignment.trainer import Evaluation
from alignment.types import Engine, Prompt, Sampling
from recipes.common import check_sampling, sample_pass_rate
from recipes.engines import EngineConfig, make_plain_engine
from recipes.tools import Tools
from rewards import RewardRunner
from rewards.routing import TASK, Router, check_tasks
from rewards.specs import RewardEntry, RewardSpec, read_specs

Modes = Literal["row", "thinking", "no_think", "both"]


@dataclass
class RolloutRecipe:
    """Settings of the recipes that sample."""

    dataset: str = field(default="", metadata={"help": "Rows with `prompt`, `question` or `messages`."})
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    eval_dataset: str = field(default="", metadata={"help": "Held-out rows; empty = no evaluation."})
    eval_split: str = ""
    eval_samples: int = field(default=4, metadata={"help": "Samples per held-out prompt."})
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    max_prompt_length: int = 1024
    modes: Modes = field(default="row", metadata={"help": "In which it samples; row: as its chat_template_kwargs say."})
    rewards: list[RewardEntry] = field(
        default_factory=lambda: [RewardEntry("verifier:math")],
        metadata={"help": "Names, or mappings of a name, parameters and a weight."},
    )
    reward_weights: list[float] = field(default_factory=list, metadata={"help": "One per reward; empty = all 1."})
    eval_reward: str = field(default="", metadata={"help": "What held-out passes are judged by; default the first."})
    reward_timeout_s: float = 60.0
    epochs: float = 1.0
    max_tokens: int = field(default=1024, metadata={"help": "Longest completion."})
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list)
    thinking_budget: int | None = field(default=None, metadata={"help": "Tokens after which thinking is ended."})
    max_rows_in_flight: int = field(default=64, metadata={"help": "Completions decoded at a time."})
    tools: list[str] = field(
        default_factory=list,
        metadata={"help": "calculator, python, search or package.module:function; rows become episodes with tools."},
    )
    tool_turns: int = field(default=8, metadata={"help": "Most turns of an episode."})
    tool_call_seconds: float = field(default=10.0, metadata={"help": "Most time of one call."})
    tool_seconds: float = field(default=60.0, metadata={"help": "Most time of all calls of an episode."})
    tool_output_tokens: int = field(default=512, metadata={"help": "Most tokens of one output."})

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        self.check()
        if not self.rewards:
            raise UserError("rewards is empty: name at least one, for instance `rewards: [verifier:math]`")
        self.specs()

    def check(self) -> None:
        """Raises UserError for a value out of its range."""
        check_sampling(self)
        check_values(self, "1 or more", "eval_samples", "tool_turns", "tool_output_tokens")
        check_values(self, "above 0", "epochs", "reward_timeout_s", "tool_call_seconds", "tool_seconds")
        check_values(self, "0 or more", "thinking_budget")

    def specs(self) -> list[RewardSpec]:
        """The rewards with their weights. Raises UserError for malformed ones."""
        try:
            return read_specs(self.rewards, self.reward_weights)
        except ValueError as error:
            raise UserError(f"rewards: {error}") from error

    def steps(self, prompts: Sized, prompts_per_step: int) -> int:
        """Steps in `epochs` of that many prompts."""
        return max(1, round(self.epochs * len(prompts) / prompts_per_step))


def load_prompts(recipe: RolloutRecipe, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Raises UserError also for rows that a routing file among the rewards could not score."""
    rows = load_rows(recipe.dataset, recipe.dataset_split or None, recipe.max_rows or None)
    _check_tasks(recipe.specs(), rows, recipe.dataset)
    rows = _prepared(recipe, rows, recipe.dataset)
    prompts = build_prompts(rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=recipe.dataset)
    refuse_equal_modes(recipe.modes, prompts)
    return prompts


def _prepared(recipe: RolloutRecipe, rows: Sequence[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """The rows with the tools that they are offered, in the modes that are asked for."""
    with about(source):
        return in_modes(Tools(recipe.tools).offer(rows) if recipe.tools else rows, recipe.modes)


def in_modes(rows: Sequence[Mapping[str, Any]], modes: str) -> list[dict[str, Any]]:
    """The rows with `enable_thinking` set for the template and `mode` for verifiers; with `both`, each row twice.

    Raises UserError for a row whose `chat_template_kwargs` cannot be read, with its number.
    """
    asked = {"row": [], "thinking": ["thinking"], "no_think": ["no_think"], "both": ["thinking", "no_think"]}[modes]
    if not asked:
        return [dict(row) for row in rows]
    out = []
    for number, row in enumerate(rows, 1):
        with about(f"row {number}"):
            variables = template_variables(row)
        for mode in asked:
            arguments = {**variables, "enable_thinking": mode == "thinking"}
            name = {"id": f"{row['id']}/{mode}"} if row.get("id") is not None else {}
            out.append({**row, **name, "mode": mode, "chat_template_kwargs": arguments})
    return out


def refuse_equal_modes(modes: Modes, prompts: Sequence[Prompt]) -> None:
    """Raises UserError when both modes are asked for and the chat template makes the same prompts of them."""
    if modes == "both" and len({tuple(p.token_ids) for p in prompts}) <= len(prompts) // 2:
        raise UserError("modes: both are the same to this chat template; it does not know `enable_thinking`")


def _check_tasks(specs: Sequence[RewardSpec], rows: Sequence[Mapping[str, Any]], source: str) -> None:
    try:
        check_tasks(specs, rows, source)
    except ValueError as error:
        raise UserError(str(error)) from error


def make_engine(
    recipe: RolloutRecipe,
    config: EngineConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
) -> Engine:
    """The engine of the settings; with tools, one whose rollouts are episodes that call them."""
    engine = make_plain_engine(config, model, tokenizer, recipe.max_rows_in_flight, folder)
    if not recipe.tools:
        return engine
    limits = EpisodeLimits(recipe.tool_turns, recipe.tool_call_seconds, recipe.tool_seconds, recipe.tool_output_tokens)
    return EpisodeEngine(engine, tokenizer, Tools(recipe.tools).of, engine.longest, limits)


def make_score(
    recipe: RolloutRecipe, prompts: Sequence[Prompt] = (), specs: Sequence[RewardSpec] | None = None
) -> RewardRunner:
    """The weighted sum of the recipe's rewards. With routing the rewards of the prompts' tasks are made at once, those
    of others when first needed. Raises UserError for a reward that cannot be made."""
    try:
        named = [(spec.name, spec.build(), spec.weight) for spec in specs or recipe.specs()]
        for router in [fn for _, fn, _ in named if isinstance(fn, Router)]:
            router.prepare(str(prompt.row.get(TASK)) for prompt in prompts)
    except (ValueError, ImportError) as error:
        raise UserError(f"rewards: {error}") from error
    return RewardRunner(named, timeout_s=recipe.reward_timeout_s)


def make_evaluation(
    recipe: RolloutRecipe, tokenizer: PreTrainedTokenizerBase, engine: Engine, sampling: Sampling
) -> Evaluation | None:
    """Held-out figures in the modes of training, by `eval_reward` (one of the rewards, or another name), or by the
    first reward. The best model is that of the highest pass rate by a verifier, and of the highest mean by other
    rewards."""
    if not recipe.eval_dataset:
        return None
    rows = load_rows(recipe.eval_dataset, recipe.eval_split or None)
    source = recipe.eval_dataset
    specs = [spec for spec in recipe.specs() if recipe.eval_reward in ("", spec.name)][:1]
    specs = specs or read_specs([recipe.eval_reward])
    _check_tasks(specs, rows, source)
    rows = _prepared(recipe, rows, source)
    heldout = build_prompts(rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=source)
    with about(source):
        check_served(engine, heldout, sampling)
    judge = make_score(recipe, heldout, specs)
    metric = "pass_rate" if specs[0].name.startswith("verifier:") else "reward"
    return Evaluation(lambda: sample_pass_rate(engine, heldout, recipe.eval_samples, sampling, judge), metric)

"""What preference-model pretraining (PMP) does to a reward model, on real human preferences with a small model.

    python -m benchmarks.evidence_reward_model --rows hh_harmless_base_test.jsonl.gz --folder runs/evidence_reward_model

rows: the harmless-base test split of Anthropic's hh-rlhf (`chosen`, `rejected` texts). Each seed divides the dialogues
into training and held-out ones (no opening question is in both) and trains a tokenizer and a language model from random
weights on the training dialogues. Reward models start from it, or from one of two first stages; as in Qwen1 both stages
have the same settings.

The votes that PMP is meant for are not among these rows. Its comparisons are stand-ins:
- *speakers*: a reply of the assistant against what people said in other training dialogues, put in its place. They hold
  no preference, only what an assistant sounds like, and come from the dialogues that fine-tuning sees.
- *other preferences*: the human preferences of three quarters of the training dialogues, before fine-tuning on the last
  quarter. They are what a comparison set can bring at best: the same judgement, on other dialogues.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import of_seeds
from benchmarks.rows import write_rows
from benchmarks.statistics import interval

HELDOUT = 700
VOCABULARY, MAX_LENGTH = 2048, 320
WIDTH, LAYERS = 128, 2
OTHERS = 2  # texts from other dialogues in a comparison of PMP
PMP_GROUPS = 1200
TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES = {"Human": "user", "Assistant": "assistant"}
# name -> (first stage or none, share of the preferences that fine-tuning sees)
ARMS: dict[str, tuple[str, float]] = {
    "quarter": ("", 0.25),
    "speakers, quarter": ("speakers", 0.25),
    "other preferences, quarter": ("other preferences", 0.25),
    "all": ("", 1.0),
    "speakers, all": ("speakers", 1.0),
    "speakers only": ("speakers", 0.0),
}
GAINS = [
    ("speakers, quarter", "quarter"),
    ("other preferences, quarter", "quarter"),
    ("speakers, all", "all"),
]


# --- rows -------------------------------------------------------------------------------------------------------------


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Conversations; pairs with an empty reply, or that differ before the last reply, are left out."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = []
    for row in rows:
        chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
        whole = chosen[-1]["content"] and rejected[-1]["content"] and chosen[-1]["role"] == "assistant"
        if whole and chosen[:-1] == rejected[:-1] and chosen != rejected:
            pairs.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
    return pairs


def _messages(text: str) -> list[dict[str, str]]:
    parts = TURN.split(text)
    return [{"role": ROLES[parts[i]], "content": parts[i + 1].strip()} for i in range(1, len(parts), 2)]


def split(pairs: Sequence[dict[str, Any]], rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """Training and held-out pairs without a common opening question."""
    openings = sorted({pair["prompt"][0]["content"] for pair in pairs})
    order = {openings[i]: place for place, i in enumerate(rng.permutation(len(openings)))}
    shuffled = sorted(pairs, key=lambda pair: order[pair["prompt"][0]["content"]])
    cut = next(i for i in range(HELDOUT, len(shuffled)) if _opening(shuffled[i]) != _opening(shuffled[i - 1]))
    return shuffled[cut:], shuffled[:cut]


def _opening(pair: dict[str, Any]) -> str:
    return pair["prompt"][0]["content"]


def dialogues(pairs: Sequence[dict[str, Any]]) -> list[list[dict]]:
    """Texts without a preference: the prompts with either reply in turn."""
    return [pair["prompt"] + pair["chosen" if i % 2 else "rejected"] for i, pair in enumerate(pairs)]


def speaker_groups(pairs: Sequence[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every reply of a training dialogue against what people said in others."""
    replies, said = [], []  # with the number of their dialogue
    for number, pair in enumerate(pairs):
        whole = pair["prompt"] + pair["chosen"]
        said += [(number, m["content"]) for m in whole if m["role"] == "user"]
        replies += [(number, whole[:i], m["content"]) for i, m in enumerate(whole) if m["role"] == "assistant" and i]
    groups = []
    for i in rng.permutation(len(replies))[:PMP_GROUPS]:
        number, before, reply = replies[i]
        others: list[str] = []
        while len(others) < OTHERS:
            other, text = said[rng.integers(len(said))]
            if other != number and text != reply and text not in others:
                others.append(text)
        groups.append({"prompt": before, "completions": [reply, *others], "labels": [1, *[0] * OTHERS]})
    return groups


# --- one seed ---------------------------------------------------------------------------------------------------------


def run_seed(rows: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Train everything and return the accuracy of each arm on every held-out pair."""
    import recipes.sft
    from recipes.quickstart.tokenizer import build_tokenizer

    rng = np.random.default_rng(seed)
    train, heldout = split(read_pairs(rows), rng)
    talks = dialogues(train)
    tokenizer = build_tokenizer((m["content"] for talk in talks for m in talk), VOCABULARY)
    write_random_model(folder / "random", tokenizer, seed)
    texts = [{"text": tokenizer.apply_chat_template(talk, tokenize=False)} for talk in talks]
    shared = ["--seed", str(seed), "--max_length", str(MAX_LENGTH), "--max_tokens_per_micro_batch", "4096"]
    shared += ["--lr_schedule", "cosine", "--warmup_steps", "4", "--adam_beta2", "0.95"]
    language = ["--dataset", write_rows(folder / "texts.jsonl", texts), "--model_name_or_path", str(folder / "random")]
    language += ["--output_dir", str(folder / "base"), "--batch_size", "32", "--learning_rate", "2e-3"]
    recipes.sft.main([*shared, *language, "--epochs", "1", "--weight_decay", "0.1"])

    base = folder / "base" / "model"
    quarter = round(0.25 * len(train))
    stages = {"speakers": speaker_groups(train, rng), "other preferences": train[quarter:]}
    starts = {"": base}
    for name, rows_of_stage in stages.items():
        starts[name] = train_reward_model(shared, base, rows_of_stage, folder / f"pmp-{_slug(name)}")
    found: dict[str, list[bool]] = {}
    evaluations: dict[str, dict[str, float]] = {}
    for arm, (stage, share) in ARMS.items():
        model = starts[stage]
        if share:
            part = train if share == 1 else train[:quarter]
            model = train_reward_model(shared, model, part, folder / _slug(arm))
        found[arm], evaluations[arm] = evaluate(model, heldout)
    return {
        "seed": seed,
        "train_pairs": len(train),
        "right": found,
        "evaluations": evaluations,
    }


def write_random_model(path: Path, tokenizer, seed: int) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        intermediate_size=3 * WIDTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.04,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def train_reward_model(shared: list[str], start: Path, rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """One epoch with the recipe; returns the model's folder."""
    import recipes.reward_model

    folder.mkdir(parents=True, exist_ok=True)
    data = write_rows(folder / "rows.jsonl", rows)
    own = ["--model_name_or_path", str(start), "--dataset", data, "--output_dir", str(folder)]
    recipes.reward_model.main([*shared, *own, "--batch_size", "16", "--learning_rate", "5e-4"])
    return folder / "model"


def _slug(name: str) -> str:
    return "-".join(re.findall(r"\w+", name))


def evaluate(model_path: Path, pairs: Sequence[dict[str, Any]]) -> tuple[list[bool], dict[str, float]]:
    import torch
    from trl import ModelConfig

    from alignment.algorithms.reward_model import summarise, tree_rewards
    from alignment.data.preference_rows import encode_preference_rows
    from alignment.models.load_scalar import load_scalar
    from alignment.models.reward_scoring import end_token_of

    model, tokenizer = load_scalar(ModelConfig(model_name_or_path=str(model_path)))
    trees, _ = encode_preference_rows(pairs, tokenizer, MAX_LENGTH, "drop", end_token_of(model, tokenizer))
    with torch.no_grad():
        rewards = tree_rewards(model.eval(), trees, 4096)
    return [tree.margins[0] > 0 for tree in rewards], summarise(rewards)


# --- all of them ------------------------------------------------------------------------------------------------------


def report(results: Sequence[dict[str, Any]]) -> None:
    """Accuracy of each arm with its interval: over held-out pairs for one seed, over seeds for several."""
    from alignment.evaluate import paired_difference, pass_rate

    for result in results:
        heldout = len(result["right"]["all"])
        print(f"seed {result['seed']}: {result['train_pairs']} pairs to train on, {heldout} held out")
        for arm, right in result["right"].items():
            rate, more = pass_rate([[float(x)] for x in right]), result["evaluations"][arm]
            calibration = f"log loss {more['log_loss']:.3f}, calibration error {more['calibration_error']:.3f}"
            print(f"    {arm:40s} {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]  {calibration}")
        for first, second in GAINS:
            alone, after = ([[float(x)] for x in result["right"][arm]] for arm in (second, first))
            gain = paired_difference(alone, after)
            print(f"    {first + ' - ' + second:40s} {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    if len(results) > 1:
        print(f"over {len(results)} seeds")
        for name, (mean, half) in summarise(results).items():
            print(f"    {name:40s} {mean:+.3f} ± {half:.3f}")


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Held-out accuracy of every arm, and the gains: mean over seeds and half of its 95 % interval."""
    accuracy = {arm: [float(np.mean(r["right"][arm])) for r in results] for arm in ARMS}
    for first, second in GAINS:
        pairs = zip(accuracy[first], accuracy[second], strict=True)
        accuracy[f"{first} - {second}"] = [a - b for a, b in pairs]
    return {name: interval(values) for name, values in accuracy.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="hh-rlhf rows (.jsonl.gz)")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    one = functools.partial(run_seed, options.rows)
    report(of_seeds("evidence_reward_model", options.folder, options.seeds, one))


if __name__ == "__main__":
    main()

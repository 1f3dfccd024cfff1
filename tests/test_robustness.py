"""What goes wrong around a run: each time one message, exit code 2, and nothing computed before is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alignment.algorithms.rollouts import prompts_fingerprint
from alignment.checkpoint import checkpoints
from alignment.data.epochs import Epochs
from alignment.errors import UserError
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.types import Prompt
from recipes import distill, dpo, fusion, generate, grpo, online_dpo, ppo, reward_model, sft, verify
from recipes.common import run
from rewards import RewardRunner
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_recipes import SHAPE, arguments, rows_of, settings, write_material, write_rows
from tests.training import train, weights_hash
from tests.training_grpo import train_grpo
from tests.training_reward import comparisons

ROOT = Path(__file__).parent.parent
MAINS = {
    "sft": sft.main,
    "dpo": dpo.main,
    "reward_model": reward_model.main,
    "ppo": ppo.main,
    "grpo": grpo.main,
    "online_dpo": online_dpo.main,
    "distill": distill.main,
    "generate": generate.main,
    "verify": verify.main,
    "fusion": fusion.main,
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.fixture
def refused(material, tmp_path, capsys, monkeypatch):
    """Runs a recipe as its script does and returns the one message that it ends with."""

    def refuse(name: str, **changes) -> str:
        given = {**settings(name, material, tmp_path / "out"), **changes}
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments(given)])
        with pytest.raises(SystemExit) as end:
            run(MAINS[name])
        errors = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in errors
        assert errors.count("error: ") == 1
        return errors[errors.index("error: ") :]

    return refuse


def main(name: str, material: Path, output: Path, **changes) -> None:
    MAINS[name](arguments({**settings(name, material, output), **changes}))


# --- what a run reads and where it writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "ppo", "grpo", "online_dpo", "distill", "verify"])
def test_a_data_set_without_rows_is_named(refused, tmp_path, name):
    assert "empty.jsonl has no rows" in refused(name, dataset=str(write_rows(tmp_path / "empty.jsonl", [])))


@pytest.mark.parametrize(
    ("name", "kind", "column"),
    [("sft", "messages", "`messages`"), ("dpo", "pairs", "`chosen`"), ("grpo", "prompts", "`question`")],
)
def test_a_missing_column_is_named_with_its_row_and_file(refused, tmp_path, name, kind, column):
    data = rows_of(kind)
    data[2] = {"something": "else"}
    message = refused(name, dataset=str(write_rows(tmp_path / "rows.jsonl", data)))
    assert "rows.jsonl" in message and "row 3" in message and column in message and "['something']" in message


def test_rewards_say_which_column_they_miss(refused, tmp_path):
    data = [{"id": row["id"], "prompt": row["prompt"]} for row in rows_of("prompts")]
    message = refused("verify", dataset=str(write_rows(tmp_path / "rows.jsonl", data)))
    assert "answer" in message


@pytest.mark.parametrize("name", ["sft", "grpo", "distill"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(refused, tmp_path, name):
    (tmp_path / "file").write_text("")
    message = refused(name, output_dir=str(tmp_path / "file" / "run"))
    assert message.startswith("error: output_dir: nothing can be written to") and "Not a directory" in message


def test_a_tokenizer_of_another_model_is_refused(refused, material, tmp_path):
    model = tmp_path / "mixed"
    shutil.copytree(material / "model", model)
    other = tiny_tokenizer()
    other.add_tokens([f"<extra {i}>" for i in range(200)])
    other.save_pretrained(model)
    assert "do not belong together" in refused("sft", model_name_or_path=str(model))


def test_a_folder_without_a_tokenizer_is_refused(refused, material, tmp_path):
    model = tmp_path / "bare"
    tiny_model("qwen3", **SHAPE).save_pretrained(model)
    assert "there is no tokenizer in" in refused("sft", model_name_or_path=str(model))


def test_debug_shows_the_traceback(material, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft.py", "--debug", "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match="dataset is missing"):
        run(sft.main)


# --- data that changed between a save and a resume --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "what"),
    [
        ("sft", "dataset", "training data"),
        ("reward_model", "dataset", "training data"),
        ("dpo", "dataset", "training data"),
        ("grpo", "dataset", "prompts"),
        ("online_dpo", "dataset", "prompts"),
        ("ppo", "dataset", "prompts"),
        ("ppo", "ptx_dataset", "pretraining text"),
        ("distill", "dataset", "prompts"),
        ("distill", "off_policy_dataset", "training data"),
    ],
)
def test_a_changed_data_file_is_refused_on_resume_with_both_fingerprints(material, tmp_path, name, key, what):
    given = settings(name, material, tmp_path / "run")
    path = tmp_path / "rows.jsonl"
    shutil.copy(given[key], path)
    main(name, material, tmp_path / "run", **{key: str(path)})
    data = [json.loads(line) for line in path.read_text().splitlines()]
    if "answer" in data[3]:
        data[3]["answer"] = "another"  # no token of the prompt changes, only what the reward reads
    else:
        data[3] = {"text": "another"} if "text" in data[3] else {**data[3], **rows_of("messages", 40)[-1]}
        data[3] |= {"chosen": [{"role": "assistant", "content": "another"}]} if "chosen" in data[3] else {}
    write_rows(path, data)
    changed = rf"{what} changed since the checkpoint \(fingerprint (\w+) then, (?!\1)\w+ now\): restore the data file"
    with pytest.raises(UserError, match=changed):
        main(name, material, tmp_path / "run", **{key: str(path), "max_steps": 3})


def test_fingerprints_cover_what_rows_say_beside_their_tokens():
    trees = comparisons(4)
    before = Epochs(trees, 2, 0).fingerprint
    trees[1].segments[-1].columns["labels"] = trees[1].segments[-1].columns["labels"] + 1
    assert Epochs(trees, 2, 0).fingerprint != before
    prompt = [Prompt("a", [], [1, 2], {"answer": answer}) for answer in "12"]
    assert prompts_fingerprint(prompt[:1]) != prompts_fingerprint(prompt[1:])


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["corrupt", "truncated", "missing", "no manifest"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capsys, harm):
    straight = weights_hash(train(str(tmp_path / "a"), 6))
    train(str(tmp_path / "b"), 4, save_every=2)
    file = checkpoints(tmp_path / "b" / "checkpoints")[-1] / "optimizer.pt"
    data = bytearray(file.read_bytes())
    if harm == "corrupt":
        data[len(data) // 2] ^= 255
        file.write_bytes(data)
    elif harm == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        (file if harm == "missing" else file.with_name("manifest.json")).unlink()
    assert weights_hash(train(str(tmp_path / "b"), 6, save_every=2)) == straight
    said = capsys.readouterr().out
    assert "step-00000004 is damaged" in said and "falling back to the one before it" in said
    assert "going on after step 2" in said


def test_without_a_sound_checkpoint_a_run_starts_anew_and_keeps_the_damaged_ones(tmp_path, capsys):
    straight = weights_hash(train(str(tmp_path / "a"), 2))
    train(str(tmp_path / "b"), 2)
    (checkpoints(tmp_path / "b" / "checkpoints")[0] / "optimizer.pt").write_bytes(b"")
    assert weights_hash(train(str(tmp_path / "b"), 2)) == straight
    assert "no checkpoint in" in capsys.readouterr().out
    assert list((tmp_path / "b" / "checkpoints").glob("superseded-*/step-00000002/model"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(str(tmp_path), 1)
    other = Policy(tiny_model("qwen3", **SHAPE))
    with pytest.raises(UserError, match="step-00000001 is of another model"):
        train(str(tmp_path), 2, policy=other)


FULL_DISK = """
import json, sys
from pathlib import Path
from alignment.checkpoint import checkpoints, find_damage
from alignment.errors import UserError
from tests.training import train

folder = Path(sys.argv[1])
try:
    train(str(folder), 8, save_every=1, keep_checkpoints=50)
except UserError as error:
    print("MESSAGE", error)
print("DAMAGE", [find_damage(path) for path in checkpoints(folder / "checkpoints")])
print("LEFT", [path.name for path in (folder / "checkpoints").glob(".*")])
"""


def test_a_full_disk_outside_a_save_is_one_message_with_the_remedy(capsys):
    def write():
        with open("/dev/full", "w") as file:  # a real one: every write finds no space
            file.write("a line of a log")

    with pytest.raises(SystemExit) as end:
        run(write)
    assert end.value.code == 2
    assert "error: No space left on device. Free space, then start the same command again" in capsys.readouterr().err


def can_mount() -> bool:
    return (
        bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="the small disk is made in a mount namespace of its own")
def test_a_full_disk_during_a_save_leaves_the_older_checkpoints(tmp_path):
    """A real one: a file system in memory that a few checkpoints fill. With room again the same command goes on."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    # 1.9 MB a checkpoint: the third finds the disk full in the middle of a file
    shell = f"mount -t tmpfs -o size=5m none {disk} && {sys.executable} -c '{FULL_DISK}' {disk}/run; cp -r {disk}/run "
    shell += str(kept)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "could not be written to" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "bytes are free there" in done.stdout or "No space left on device" in done.stdout
    assert "Free space or choose another output_dir, then start the same command again" in done.stdout
    assert "LEFT []" in done.stdout
    sound = len(checkpoints(kept / "checkpoints"))
    assert sound >= 1 and f"DAMAGE {[None] * sound}" in done.stdout
    resumed = weights_hash(train(str(kept), 8))
    assert weights_hash(train(str(tmp_path / "straight"), 8)) == resumed


# --- rewards that fail within a training ------------------------------------------------------------------------------


def hangs(prompts, **columns):
    time.sleep(60)


async def hangs_politely(prompts, **columns):
    await asyncio.sleep(60)


def raises(prompts, **columns):
    raise KeyError("no such column")


BAD = {
    "hangs": (hangs, "timed_out"),
    "hangs_politely": (hangs_politely, "timed_out"),
    "raises": (raises, "raised"),
    "nan": (lambda prompts, **columns: [float("nan")] * len(prompts), "not_finite"),
    "none": (lambda prompts, **columns: [None] * len(prompts), "none"),
    "wrong_length": (lambda prompts, **columns: [1.0], "invalid"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_run_goes_on_with_a_reward_that_fails_and_counts_it(tmp_path, name):
    """Alone it leaves an empty episode: nothing is trained and nothing stops. Beside a sound one it changes nothing."""
    reward, problem = BAD[name]
    sound = ("sound", lambda prompts, completion_ids, **columns: [ids[0] % 7 / 7 for ids in completion_ids], 1.0)
    policy = train_grpo(str(tmp_path / "alone"), 1, score=RewardRunner([("bad", reward, 1.0)], 0.05))
    assert weights_hash(policy) == weights_hash(Policy(tiny_model("qwen3")))
    line = read_metrics(tmp_path / "alone" / "metrics.jsonl", "train")[0]
    assert line["skipped_updates"] == 1 and line[f"unscored/bad/{problem}"] > 0
    both = train_grpo(str(tmp_path / "both"), 1, score=RewardRunner([sound, ("bad", reward, 1.0)], 0.05))
    one = train_grpo(str(tmp_path / "one"), 1, score=RewardRunner([sound], 20.0))
    assert weights_hash(both) == weights_hash(one)


def flat(prompts, **columns) -> list[float]:
    return [0.5] * len(prompts)


def unscored(prompts, **columns) -> list[None]:
    return [None] * len(prompts)


@pytest.mark.parametrize("reward", ["flat", "unscored"])
@pytest.mark.parametrize("name", ["grpo", "online_dpo", "ppo"])
def test_an_episode_without_signal_ends_no_run(material, tmp_path, name, reward):
    main(name, material, tmp_path, rewards=[f"tests.test_robustness:{reward}"])
    lines = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert [line["step"] for line in lines] == [1, 2]
    if name != "ppo" or reward == "unscored":  # PPO learns values, and the KL's part of the reward, from equal rewards
        assert all(line["skipped_updates"] == 1 for line in lines[1:])
    assert all(torch.isfinite(p).all() for p in Policy(tiny_model("qwen3", **SHAPE)).parameters())


# --- the same at scale ------------------------------------------------------------------------------------------------


def module(name: str, *options: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", name, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_mutated_recipes_and_rows_end_with_one_message_or_a_run():
    done = module("benchmarks.fuzz", "--cases", "100", "--first", "5000")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_every_trainer_survives_kills():
    """SFT has a test of its own in test_trainer.py."""
    done = module(
        "benchmarks.kill_resume", "--kills", "5", "--methods", "reward_model", "dpo", "ppo", "grpo", "distill"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

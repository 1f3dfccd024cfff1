"""Settings from YAML and the command line; what is wrong is named."""

import dataclasses
import re
from pathlib import Path

import pytest
from trl import ModelConfig

from alignment.algorithms.distill import DistillConfig
from alignment.algorithms.dpo import DpoConfig
from alignment.algorithms.grpo import GrpoConfig
from alignment.algorithms.online_dpo import OnlineDpoConfig
from alignment.algorithms.ppo import PpoConfig
from alignment.algorithms.reward_model import RewardModelConfig
from alignment.commands.inspect import recipe_kinds
from alignment.config import TrainConfig, as_dict, parse
from alignment.data.fusion import FusionConfig
from alignment.errors import UserError
from alignment.yaml_files import read_yaml
from recipes.cold_start import ColdStartRecipe
from recipes.fusion import FusionRecipe
from recipes.select_queries import SelectRecipe
from recipes.sft import SftRecipe
from recipes.verify import VerifyRecipe

RECIPES = Path(__file__).parent.parent / "recipes"
KINDS = recipe_kinds()
OTHERS = {
    "verify": (VerifyRecipe, ModelConfig),
    "fusion": (FusionRecipe, FusionConfig),
    "cold_start": (ColdStartRecipe,),
    "select_queries": (SelectRecipe,),
}


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return ["--config", str(path)]


LEFT_TO_SAY = ("model_name_or_path", "dataset", "output_dir", "responses", "pairs", "output", "candidates")
NO_RECIPES = {"tasks", "stages", "compute_environment"}  # keys of files that recipes, pipelines and launches name


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: str(p.relative_to(RECIPES)))
def test_every_recipe_that_ships_is_for_one_of_the_scripts(path):
    keys = read_yaml(path).keys()
    if keys & NO_RECIPES:
        return
    kinds = [*KINDS.values(), *OTHERS.values()]
    fitting = [ks for ks in kinds if keys <= {f.name for kind in ks for f in dataclasses.fields(kind)}]
    assert fitting
    fields = {f.name: f for kind in fitting[0] for f in dataclasses.fields(kind)}
    given = [name for name in LEFT_TO_SAY if name in fields and name not in keys]
    assert parse(*fitting[0], arguments=["--config", str(path), *(f"--{name}=x" for name in given)])


def test_every_model_that_a_recipe_reads_is_made_by_another():
    files = [path for path in RECIPES.rglob("*.yaml") if path.parent.name != "quickstart"]
    folders = {read_yaml(path).get("output_dir") for path in files}
    for path in files:
        for folder in re.findall(r"(runs/[\w./-]+)/model\b", path.read_text()):
            assert folder in folders, f"{path}: nothing writes {folder}/model"


def test_no_recipe_trains_weights_in_half_precision():
    for path in RECIPES.rglob("*.yaml"):
        content = read_yaml(path)
        assert not ("learning_rate" in content and content.get("dtype") in ("bfloat16", "float16", "auto")), path


def test_published_figures_of_the_recipes():
    sft, _, train, _ = parse(*KINDS["sft"], arguments=["--config", str(RECIPES / "qwen1/sft.yaml")])
    assert (sft.batch_size, sft.max_length, train.max_steps, train.warmup_steps) == (128, 2048, 4000, 1430)
    assert (train.learning_rate, train.adam_beta2, train.adam_eps) == (2e-6, 0.95, 1e-8)
    recipe, grpo, *_ = parse(*KINDS["grpo"], arguments=["--config", str(RECIPES / "qwen2.5/grpo.yaml")])
    assert grpo.prompts_per_step * grpo.group_size == 2048
    assert recipe.curriculum == "variance"
    dpo, _, merging, train, *_ = parse(*KINDS["dpo"], arguments=["--config", str(RECIPES / "qwen2.5/dpo.yaml")])
    assert (dpo.epochs, train.learning_rate, merging.merge) == (1, 7e-7, "ondare")
    rollouts, _, ppo, _, train, *_ = parse(*KINDS["ppo"], arguments=["--config", str(RECIPES / "qwen1/ppo.yaml")])
    assert (ppo.value_warmup_steps, ppo.group_size, ppo.kl_coef, ppo.value_clip) == (50, 2, 0.04, 0.15)
    assert (train.learning_rate, ppo.value_learning_rate, rollouts.top_p) == (1e-6, 5e-6, 0.9)


def test_help_explains_every_setting_of_a_method():
    for kind in (GrpoConfig, PpoConfig, DpoConfig, OnlineDpoConfig, RewardModelConfig, DistillConfig):
        silent = [f.name for f in dataclasses.fields(kind) if not f.metadata.get("help")]
        assert not silent, f"{kind.__name__}: {silent}"


def test_command_line_wins_over_the_file(tmp_path):
    arguments = write(tmp_path, "output_dir: a\nseed: 3\nlearning_rate: 1e-5\n")
    (train,) = parse(TrainConfig, arguments=[*arguments, "--seed", "7"])
    assert (train.seed, train.output_dir, train.learning_rate) == (7, "a", 1e-5)


def test_unknown_keys_name_the_nearest_known_one(tmp_path):
    with pytest.raises(UserError, match="unknown key `learning_rat`; did you mean `learning_rate`"):
        parse(TrainConfig, arguments=write(tmp_path, "output_dir: a\nlearning_rat: 1\n"))
    with pytest.raises(UserError, match="unknown option --sed; did you mean `seed`"):
        parse(TrainConfig, arguments=["--output_dir", "a", "--sed", "1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: soon", "`seed: soon` is not of type int"),
        ('report_to: ["a\\0b"]', r"`report_to: \['a\\x00b'\]` has a null character"),
        ("bf16: 1.5", "`bf16: 1.5` is not of type bool"),
        ("lr_schedule: cosinus", "is not of type one of constant, linear, cosine"),
        ("report_to: wandb", "`report_to: wandb` is not of type list"),
        ("keep_checkpoints: 0", "keep_checkpoints: 0 is not valid, it has to be 1 or more"),
        ("learning_rate: -1.0", "learning_rate: -1.0 is not valid"),
    ],
)
def test_wrong_values_name_the_key(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        parse(TrainConfig, arguments=write(tmp_path, f"output_dir: a\n{line}\n"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", ""])
def test_files_that_are_not_settings_are_named(tmp_path, text):
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        parse(TrainConfig, arguments=write(tmp_path, text))


def test_missing_files_and_values_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        parse(TrainConfig, arguments=["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(UserError, match="output_dir is missing"):
        parse(TrainConfig, arguments=[])
    with pytest.raises(UserError, match="dataset is missing"):
        parse(SftRecipe, arguments=[])


def test_settings_flatten_for_the_run_folder():
    assert as_dict(TrainConfig(output_dir="a"), SftRecipe(dataset="d"))["dataset"] == "d"

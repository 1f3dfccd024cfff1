"""recipes/verify.py: its responses file goes on where it stopped, is never overwritten, and `align verify` reads it."""

import json

import pytest

from alignment.cli import main as align
from alignment.errors import UserError
from alignment.types import Prompt, Rollout, Sampling
from recipes import generate
from recipes.quickstart.model import write_base_model
from recipes.quickstart.task import make_problems, prompt_rows
from recipes.quickstart.tokenizer import build_tokenizer
from recipes.responses import ResponseFile, as_record, settings_of
from recipes.verify import VerifyRecipe, main
from verifiers import Verdict

PROMPTS = [Prompt(f"p{i}", [], [1], {"question": f"{i}?", "answer": i, "score": "the row's own"}) for i in range(3)]


def records(prompt, samples=2):
    rollouts = [Rollout(prompt, i, [1], [0.0], f"é {prompt.id} {i}", "stop", 0) for i in range(samples)]
    return [as_record(rollout, Verdict(1.0, "pass", "right")) for rollout in rollouts]


def response_file(path, **changes):
    values = {"model": "m", "verifier": "math", "samples": 2, **changes}
    sampling = Sampling(stop_token_ids=(7,), temperature=values.pop("temperature", 1.0))
    return ResponseFile(path, settings_of(values["model"], values["verifier"], values["samples"], sampling))


@pytest.fixture
def path(tmp_path):
    """A file with the first two prompts."""
    path = tmp_path / "new" / "responses.jsonl"
    file = response_file(path)
    assert file.start(PROMPTS) == {}
    file.append(records(PROMPTS[0]))
    file.append(records(PROMPTS[1]))
    return path


def test_what_is_judged_comes_back(path):
    known = response_file(path).start(PROMPTS)
    assert known == {"p0": records(PROMPTS[0]), "p1": records(PROMPTS[1])}
    assert known["p0"][1]["response"] == "é p0 1" and known["p0"][0]["score"] == 1.0


@pytest.mark.parametrize("cut", [2, 20, 200])
def test_an_unfinished_prompt_is_cut_off_and_the_others_stay(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    file = response_file(path)
    assert list(file.start(PROMPTS)) == ["p0"]
    file.append(records(PROMPTS[1]))
    assert path.read_bytes() == whole


def test_a_last_line_that_only_lacks_its_end_is_kept(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert list(response_file(path).start(PROMPTS)) == ["p0", "p1"] and path.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "made with model 'm', this run has 'other'"),
        ({"verifier": "text"}, "made with verifier 'math'"),
        ({"samples": 3}, "made with samples 2, this run has 3"),
        ({"temperature": 0.5}, r"made with temperature 1\.0, this run has 0\.5"),
    ],
)
def test_other_settings_are_refused_and_the_file_stays(path, changes, message):
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        response_file(path, **changes).start(PROMPTS)
    assert path.read_bytes() == before


def test_other_rows_are_refused(path):
    changed = [Prompt("p0", [], [1], {**PROMPTS[0].row, "answer": 9}), *PROMPTS[1:]]
    with pytest.raises(UserError, match="another 'answer' in the row of prompt 'p0'"):
        response_file(path).start(changed)
    with pytest.raises(UserError, match="prompt 'p1', which is not among"):
        response_file(path).start(PROMPTS[:1])


def test_a_file_of_other_making_is_never_touched(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "1?"}\n')
    with pytest.raises(UserError, match="which tells how it was made"):
        response_file(path).start(PROMPTS)
    assert path.read_text() == '{"question": "1?"}\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    problems = make_problems(12, seed=0, levels=(1, 2))
    rows = [{k: v for k, v in row.items() if k != "question"} for row in prompt_rows(problems)]  # as messages only
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = (message["content"] for row in problems for message in row["messages"])
    write_base_model(folder / "base", build_tokenizer(texts, 400), "quickstart", 0)
    return folder


def recipe(data, path, *arguments):
    common = ["--verifier", "tests.responses:even_length"]
    common += ["--model_name_or_path", str(data / "base"), "--dataset", str(data / "rows.jsonl")]
    common += ["--samples", "3", "--max_tokens", "6", "--responses", str(path)]
    return main([*common, *arguments])


def test_an_interrupted_run_ends_with_the_same_file_and_figures(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recipes.verify.CHUNK", 4)
    whole = recipe(data, tmp_path / "whole.jsonl")
    text = (tmp_path / "whole.jsonl").read_text()
    assert text.count("\n") == 12 * 3
    part = tmp_path / "part.jsonl"
    part.write_text("".join(text.splitlines(keepends=True)[: 5 * 3 + 1]) + '{"torn')
    (tmp_path / "part.jsonl.settings.json").write_text((tmp_path / "whole.jsonl.settings.json").read_text())
    capsys.readouterr()
    assert recipe(data, part) == whole
    assert "holds 5 of 12 prompts, going on" in capsys.readouterr().out
    assert part.read_text() == text

    assert recipe(data, part) == whole and part.read_text() == text  # nothing left to do
    with pytest.raises(UserError, match="made with seed 0, this run has 1"):
        recipe(data, part, "--seed", "1")
    assert part.read_text() == text


@pytest.mark.parametrize("sample", [main, generate.main], ids=["verify", "generate"])
def test_a_thinking_budget_reaches_the_engine(data, tmp_path, sample):
    """Which refuses one that leaves no room for an answer, before it samples anything."""
    settings = {
        "model_name_or_path": data / "base",
        "dataset": data / "rows.jsonl",
        "max_tokens": 6,
        "thinking_budget": 3,
    }
    arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    with pytest.raises(UserError, match=r"thinking_budget: 3 tokens and the .* leave no room"):
        sample([*arguments, "--responses", str(tmp_path / "responses.jsonl")])
    written = json.loads((tmp_path / "responses.jsonl.settings.json").read_text())
    assert written["thinking_budget"] == 3


def test_a_thinking_budget_that_makes_no_sense_is_refused():
    for kind in (VerifyRecipe, generate.GenerateRecipe):
        with pytest.raises(UserError, match="thinking_budget: -1 is not valid"):
            kind(dataset="rows.jsonl", responses="r.jsonl", thinking_budget=-1)
    with pytest.raises(UserError, match="leave it out beside thinking_budgets"):
        VerifyRecipe(dataset="rows.jsonl", thinking_budgets=["0,64"], thinking_budget=3)


def test_more_rows_and_then_all_fill_one_file(data, tmp_path, capsys):
    path = tmp_path / "responses.jsonl"
    assert recipe(data, path, "--max_rows", "3")["problems"] == 3
    assert recipe(data, path)["problems"] == 12
    assert "holds 3 of 12 prompts" in capsys.readouterr().out


def test_align_verify_reads_the_responses_back(data, tmp_path, monkeypatch):
    """Rows that hold messages only: their responses are told apart by the prompt's id."""
    monkeypatch.setenv("COLUMNS", "200")
    path, figures = tmp_path / "responses.jsonl", tmp_path / "figures.json"
    measured = recipe(data, path)
    arguments = ["verify", str(path), "--json", str(figures), "--verifier"]
    assert align([*arguments, "tests.responses:even_length", "--pass-at", "1", "3", "--audit-against", "status"]) == 0
    found = json.loads(figures.read_text())
    line = found["domains"]["all"]
    assert (line["problems"], line["responses"]) == (12, 36) == (measured["problems"], measured["samples"])
    assert 0 < measured["pass_rate"] == line["pass_rate"]["value"] < line["pass_at"]["3"]["value"]
    assert line["pass_rate"]["low"] == measured["ci_low"]
    assert line["pass_at"]["1"]["value"] == pytest.approx(measured["pass_rate"])
    assert found["comparison"]["disagreements"] == 0 and found["comparison"]["domains"]["all"]["compared"] == 36
    assert align([*arguments, "math", "--majority-at", "3"]) == 0
    assert json.loads(figures.read_text())["domains"]["all"]["majority_at"]["3"]["problems"] == 12

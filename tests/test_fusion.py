"""The mixture of both modes: every answer follows the last flag, shares are kept, the same seed gives the same rows."""

import json
from collections import Counter

import pytest

from alignment.chat.masks import encode_messages
from alignment.chat.messages import thinking_of
from alignment.chat.thinking import EMPTY_BLOCK, last_flag, mode_of
from alignment.data.fusion import FusionConfig, answer_modes, fuse, non_thinking_rows, thinking_rows
from alignment.data.fusion_report import fusion_report
from alignment.data.mode_tests import mode_tests
from alignment.data.prompts import build_prompts
from alignment.errors import UserError
from recipes.fusion import main
from recipes.quickstart.model import write_base_model
from tests.chat_templates import QWEN3
from tests.tiny import tiny_tokenizer
from verifiers import verify


def conversation(answer, *, text="What is 2 + 3?", **message):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer, **message}]}


def thinking(n):
    return [conversation(f"<think>\nI add {i} and 3\n</think>\n\n{i + 3}", text=f"What is {i} + 3?") for i in range(n)]


def non_thinking(n):
    return [conversation(f"It is {i}.", text=f"Say the number {i}.") for i in range(n)]


def pools(t=60, n=60):
    counts = Counter()
    return thinking_rows(thinking(t), counts), non_thinking_rows(non_thinking(n), counts)


def mixture(t=60, n=60, **settings):
    return fuse(*pools(t, n), FusionConfig(**settings))


def answers(rows):
    """(messages before, the answer) of every answer."""
    return [
        (row["messages"][:i], message)
        for row in rows
        for i, message in enumerate(row["messages"])
        if message["role"] == "assistant"
    ]


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chatml", "qwen3"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unflagged_share": 1.0},
        {"unflagged_share": 0.0, "contrary_share": 1.0},
        {"system_share": 1.0, "contrary_share": 0.5},
        {"multi_turn_share": 1.0, "max_turns": 6, "contrary_share": 0.5, "unflagged_share": 0.5},
    ],
)
def test_every_answer_follows_the_last_flag_and_its_empty_block_carries_loss(settings, template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN3 if template == "qwen3" else tokenizer.chat_template
    rows = mixture(30, 30, **settings)
    assert sum(len(answers([row])) for row in rows) == 60
    for before, answer in answers(rows):
        assert mode_of(before) == ("thinking" if thinking_of(answer) else "no_think")
    for row in rows:
        chat = encode_messages(tokenizer, row["messages"])
        texts = [tokenizer.decode(chat.token_ids[turn.start : turn.end]) for turn in chat.turns]
        modes = [mode for mode, _ in answer_modes(row["messages"]).values()]
        assert [text.startswith(EMPTY_BLOCK) for text in texts] == [mode == "no_think" for mode in modes]


def test_questions_and_answers_are_kept_as_they_are():
    texts = Counter()
    for before, answer in answers(mixture(contrary_share=0.5, multi_turn_share=0.8)):
        question = before[-1]["content"].replace("/no_think", "").replace("/think", "").strip()
        texts[question, answer["content"]] += 1
    expected = [(row["messages"][0]["content"], row["messages"][1]["content"]) for pool in pools() for row in pool]
    assert texts == Counter(expected)


def test_shares_are_those_asked_for():
    rows = mixture(400, 400, unflagged_share=0.25, multi_turn_share=0.0, contrary_share=0.0, system_share=0.5)
    flags = Counter((bool(thinking_of(answer)), last_flag(before) is not None) for before, answer in answers(rows))
    assert flags[False, True] == 400 and flags[False, False] == 0  # the other mode needs its flag
    assert 0.18 < flags[True, False] / 400 < 0.32
    systems = sum(row["messages"][0]["role"] == "system" for row in rows)
    assert 0.42 < systems / (800 - flags[True, False]) < 0.58
    contrary = mixture(200, 200, unflagged_share=0.0, contrary_share=0.5, multi_turn_share=0.0)
    both = sum("/think" in (text := str(row["messages"][:-1])) and "/no_think" in text for row in contrary)
    assert 0.42 < both / 400 < 0.58
    starts = sum(row["messages"][-2]["content"].startswith("/") for row in contrary)
    assert 0.03 < starts / 400 < 0.2
    assert all(last_flag(row["messages"]) is None for row in thinking_only(mixture(40, 40, unflagged_share=1.0)))


def thinking_only(rows):
    singles = [row for row in rows if sum(m["role"] == "assistant" for m in row["messages"]) == 1]
    return [row for row in singles if thinking_of(row["messages"][-1])]


def test_the_share_of_thinking_rows_cuts_the_larger_pool():
    rows = mixture(60, 20, thinking_share=0.5, multi_turn_share=0.0)
    assert Counter(bool(thinking_of(row["messages"][-1])) for row in rows) == {True: 20, False: 20}
    rows = mixture(30, 60, thinking_share=0.75, multi_turn_share=0.0)
    assert Counter(bool(thinking_of(row["messages"][-1])) for row in rows) == {True: 30, False: 10}
    assert len(mixture(30, 60, multi_turn_share=0.0)) == 90


def test_dialogues_hold_several_questions_and_change_their_mode():
    rows = mixture(100, 100, multi_turn_share=1.0, max_turns=4)
    sizes = Counter(len(answers([row])) for row in rows)
    assert set(sizes) <= {1, 2, 3, 4} and sizes[1] <= 1 and min(sizes[2], sizes[3], sizes[4]) > 5
    modes = [[mode for mode, _ in answer_modes(row["messages"]).values()] for row in rows]
    assert sum(len(set(m)) == 2 for m in modes) > len(rows) / 3
    carried = [flagged for row in rows for mode, flagged in list(answer_modes(row["messages"]).values())[1:]]
    assert {True, False} == set(carried)


def test_a_dialogue_is_never_longer_than_there_are_questions():
    assert sum(len(answers([row])) for row in mixture(5, 5, multi_turn_share=1.0, max_turns=10**30)) == 10


def test_joined_questions_are_of_one_task_and_keep_it():
    thought = [{**row, "task": f"task {i % 3}"} for i, row in enumerate(thinking(30))]
    plain = [{**row, "task": f"task {i % 3}"} if i % 4 else row for i, row in enumerate(non_thinking(40))]
    task_of = {row["messages"][0]["content"]: row.get("task") for row in thought + plain}
    pool = thinking_rows(thought, Counter()), non_thinking_rows(plain, Counter())
    rows = fuse(*pool, FusionConfig(multi_turn_share=1.0, unflagged_share=1.0))
    for row in rows:
        texts = [m["content"] for m in row["messages"] if m["role"] == "user"]
        bare = [text.replace("/no_think", "").replace("/think", "").strip() for text in texts]
        assert {task_of[text] for text in bare} == {row.get("task")}
    assert sum(len(answers([row])) > 1 for row in rows) > 10


def test_the_seed_decides():
    assert mixture(seed=3) == mixture(seed=3)
    assert mixture(seed=3) != mixture(seed=4)
    (source, _), before = pools(), json.dumps(pools())
    fuse(*pools(), FusionConfig(contrary_share=1.0))
    assert json.dumps(pools()) == before and source == pools()[0]


def test_conversations_with_a_system_turn_tools_or_several_questions_get_flags_too():
    system = {"role": "system", "content": "Be brief."}
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    tools = {
        "tools": [{"name": "add"}],
        "messages": [
            system,
            {"role": "user", "content": "2 + 3?"},
            {"role": "assistant", "content": "<think>I add.</think>", "tool_calls": [call]},
            {"role": "tool", "content": "5"},
            {"role": "assistant", "content": "<think>So.</think>5"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "<think>Done.</think>No more."},
        ],
    }
    counts = Counter()
    pool = thinking_rows([tools], counts), non_thinking_rows(non_thinking(1), counts)
    rows = fuse(*pool, FusionConfig(unflagged_share=0.0, system_share=1.0, contrary_share=0.0))
    (row,) = [row for row in rows if "tools" in row]
    assert row["messages"][0]["content"] == "Be brief.\n/think"
    assert [m["role"] for m in row["messages"]] == [m["role"] for m in tools["messages"]]
    assert row["messages"][1]["content"] == "2 + 3?" and row["messages"][5]["content"].split()[-1] == "/think"
    assert all(mode_of(before) == "thinking" for before, _ in answers([row]))


# --- the pools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "fits", "reason"),
    [
        ("<think>hm</think>5", "<think>\nhm\n</think>\n\n5", ""),
        ("hm</think>5", "<think>\nhm\n</think>\n\n5", ""),
        ("<think>hm", None, "never ends"),
        ("<think>a</think><think>b</think>5", None, "tags twice"),
        ("<think>hm</think>", None, "no answer"),
        ("5", None, "no thinking"),
        (EMPTY_BLOCK + "5", None, "no thinking"),
    ],
)
def test_thinking_rows_have_one_block_and_an_answer(answer, fits, reason):
    counts = Counter()
    rows = thinking_rows([conversation(answer)], counts)
    assert [row["messages"][-1]["content"] for row in rows] == ([fits] if fits else [])
    assert any(reason in name for name in counts) and sum(counts.values()) == 1


def test_non_thinking_rows_lose_the_empty_block_and_may_not_think():
    counts = Counter()
    rows = non_thinking_rows(
        [conversation(EMPTY_BLOCK + "5"), conversation("6"), conversation("<think>hm</think>7"), conversation("")],
        counts,
    )
    assert [row["messages"][-1]["content"] for row in rows] == ["5", "6"]
    assert counts == {"no_think": 2, "no_think: an answer that thinks": 1, "no_think: no answer": 1}
    split = conversation("5", reasoning_content="hm")
    assert non_thinking_rows([split], counts) == []
    assert (
        thinking_rows([split], counts)[0]["messages"][-1] == conversation("<think>\nhm\n</think>\n\n5")["messages"][-1]
    )


def test_the_flag_takes_the_place_of_the_variable_that_a_row_was_sampled_with():
    """Responses sampled with enable_thinking=False teach `/no_think`; other variables stay."""
    row = {**conversation("5"), "chat_template_kwargs": {"enable_thinking": False, "x": 1}}
    plain = {**conversation("6"), "chat_template_kwargs": {"enable_thinking": False}}
    kept, bare = non_thinking_rows([row, plain], Counter())
    assert kept["chat_template_kwargs"] == {"x": 1} and "chat_template_kwargs" not in bare
    as_text = [{**r, "chat_template_kwargs": json.dumps(r["chat_template_kwargs"])} for r in (row, plain)]
    assert non_thinking_rows(as_text, Counter()) == [kept, bare]
    with pytest.raises(UserError, match="row 1 of the no_think rows: column chat_template_kwargs is not valid JSON"):
        non_thinking_rows([{**row, "chat_template_kwargs": "{"}], Counter())
    (fused,) = [r for r in fuse(*pools(1, 0)[:1], [bare], FusionConfig()) if not thinking_of(r["messages"][-1])]
    assert last_flag(fused["messages"][:-1]) == "no_think"


def test_flags_that_a_row_brings_have_to_agree_and_stay():
    counts = Counter()
    own = [
        conversation("<think>hm</think>5", text="2 + 3? /think"),
        conversation("<think>a</think>5", text="x /no_think"),
    ]
    (kept,) = thinking_rows(own, counts)
    assert counts["thinking: a flag of its own asks for the other mode"] == 1
    rows = fuse([kept], non_thinking_rows(non_thinking(1), counts), FusionConfig(unflagged_share=0.0))
    assert [r["messages"][0]["content"] for r in rows if thinking_of(r["messages"][-1])] == ["2 + 3? /think"]


def test_prompt_and_completion_train_the_completion_alone():
    history = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    question = {"role": "user", "content": "2 + 3?"}
    row = {"prompt": [*history, question], "completion": [{"role": "assistant", "content": "<think>hm</think>5"}]}
    (found,) = thinking_rows([row], Counter())
    assert [m.get("train", True) for m in found["messages"] if m["role"] == "assistant"] == [False, True]
    rows = fuse([found], non_thinking_rows(non_thinking(1), Counter()), FusionConfig(unflagged_share=0.0))
    (fused,) = [r for r in rows if len(r["messages"]) == 4]
    assert "/think" not in fused["messages"][0]["content"] and "/think" in fused["messages"][2]["content"]


def record(prompt_id, sample, response, score, finish="stop", **columns):
    row = {"prompt_id": prompt_id, "sample": sample, "response": response, "score": score, "finish_reason": finish}
    return {"question": f"{prompt_id}?", **row, **columns}


def test_thinking_rows_by_rejection_sampling_from_responses():
    records = [
        record("a", 0, "<think>hm</think>5", 1.0),
        record("a", 1, "<think>hmm</think>5", 1.0),
        record("a", 2, "<think>no</think>6", 0.0),
        record("b", 0, "<think>cut</think>5", 1.0, finish="length"),
        record("b", 1, "<think>stopped</think>5", 1.0, finish="budget"),
        record("c", 0, "no thinking, 5", 1.0),
        record("d", 0, "opened</think>5", 1.0, think_opened=True),
    ]
    counts = Counter()
    rows = thinking_rows(records, counts)
    assert [row["messages"][0]["content"] for row in rows] == ["a?", "d?"]
    assert rows[1]["messages"][1]["content"] == "<think>\nopened\n</think>\n\n5"
    assert counts["failed"] == 1 and counts["truncated"] == 2 and counts["thinking: no thinking"] == 1
    assert len(thinking_rows(records, Counter(), per_prompt=2)) == 3
    assert len(thinking_rows(records, Counter(), pass_score=0.0, per_prompt=3)) == 4


def test_what_cannot_be_a_row_is_named():
    with pytest.raises(UserError, match=r"row 2 of the thinking rows: needs `messages`"):
        thinking_rows([*thinking(1), {"text": "x"}], Counter())
    with pytest.raises(UserError, match="has to end with the assistant's answer"):
        non_thinking_rows([{"messages": [{"role": "user", "content": "?"}]}], Counter())
    with pytest.raises(UserError, match="there is no non-thinking row"):
        fuse(thinking(1), [], FusionConfig())
    for settings, message in (({"unflagged_share": 1.5}, "between 0 and 1"), ({"max_turns": 1}, "2 or more")):
        with pytest.raises(UserError, match=message):
            FusionConfig(**settings)


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_counts_answers_and_tokens():
    tokenizer = tiny_tokenizer()
    rows = mixture(40, 40)
    report = fusion_report(rows, tokenizer)
    content = report.as_dict()
    chats = [encode_messages(tokenizer, row["messages"]) for row in rows]
    assert content["conversations"] == len(rows)
    assert content["tokens"] == sum(len(chat.token_ids) for chat in chats)
    assert content["scored_tokens"] == sum(int(chat.loss_mask.sum()) for chat in chats)
    assert content["multi_turn"] == sum(len(answers([row])) > 1 for row in rows)
    kinds = {kind: part["answers"] for kind, part in content["answers"].items()}
    assert set(kinds) <= {"thinking, flag", "thinking, no flag", "no_think, flag", "no_think, flag before"}
    assert sum(kinds[k] for k in kinds if k.startswith("thinking")) == 40 and sum(kinds.values()) == 80
    assert sum(part["answer_share"] for part in content["answers"].values()) == pytest.approx(1)
    assert sum(part["scored_share"] for part in content["answers"].values()) == pytest.approx(1)
    assert report.table().row_count == len(kinds)


# --- mode tests -------------------------------------------------------------------------------------------------------


def asked(n=28, seed=0):
    questions = [f"What is {i} + 4?" for i in range(n)]
    return mode_tests(questions, [("Say one.", "One."), ("Say two.", "Two.")], seed)


def test_mode_tests_ask_in_every_place_for_either_mode():
    rows = asked()
    cases = Counter(row["domain"] for row in rows)
    assert len(cases) == 14 and set(cases.values()) == {2}
    for row in rows:
        arguments = row.get("chat_template_kwargs", {})
        assert mode_of(row["prompt"], arguments) == row["mode"]
        assert row["prompt"][-1]["content"].startswith("What is ")
        assert (last_flag(row["prompt"]) is None) == row["domain"].startswith(("no flag", "template"))
    assert len({row["id"] for row in rows}) == 28 and asked() == rows != asked(seed=1)
    assert len({row["prompt"][-1]["content"].split("?")[0] for row in rows}) == 28
    with pytest.raises(UserError, match="mode tests need questions"):
        mode_tests([], [("a", "b")])


def test_mode_tests_are_scored_by_the_format_verifier():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN3
    prompts = build_prompts(asked(), tokenizer, max_prompt_length=500)
    thinks, skips = "<think>\nhm\n</think>\n\n5", "5"
    for prompt in prompts:
        right = thinks if prompt.row["mode"] == "thinking" else skips
        wrong = skips if prompt.row["mode"] == "thinking" else thinks
        assert verify("format", right, prompt.row).passed and not verify("format", wrong, prompt.row).passed
        off = prompt.row["domain"] == "template: no_think"
        assert tokenizer.decode(prompt.token_ids).endswith(EMPTY_BLOCK) == off
    no_think = [p for p in prompts if p.row["mode"] == "no_think"]
    assert all(verify("format", EMPTY_BLOCK + "5", p.row).passed for p in no_think)


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_writes_mixture_report_and_mode_tests(tmp_path, capsys):
    write_base_model(tmp_path / "base", tiny_tokenizer(), "quickstart", 0)
    files = {
        "responses": [record(f"q{i}", s, f"<think>hm {s}</think>5", float(s)) for i in range(8) for s in range(2)],
        "accepted": [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in thinking(8)],
        "plain": non_thinking(12),
        "heldout": [{"question": f"held out {i}"} for i in range(14)],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model_name_or_path", str(tmp_path / "base"), "--output", str(tmp_path / "new" / "fusion.jsonl")]
    arguments += ["--thinking", str(tmp_path / "responses.jsonl"), str(tmp_path / "accepted.jsonl")]
    arguments += ["--non_thinking", str(tmp_path / "plain.jsonl"), "--thinking_share", "0.5"]
    arguments += ["--mode_tests", str(tmp_path / "modes.jsonl"), "--mode_questions", str(tmp_path / "heldout.jsonl")]
    content = main(arguments)
    rows = [json.loads(line) for line in (tmp_path / "new" / "fusion.jsonl").read_text().splitlines()]
    assert len(answers(rows)) == 24 and content["conversations"] == len(rows)
    assert json.loads((tmp_path / "new" / "fusion.jsonl.report.json").read_text()) == content
    tests = [json.loads(line) for line in (tmp_path / "modes.jsonl").read_text().splitlines()]
    assert len(tests) == 14 and all("held out" in row["prompt"][-1]["content"] for row in tests)
    assert "thinking, no flag" in capsys.readouterr().out
    with pytest.raises(UserError, match="mode_questions is missing"):
        main([*arguments[:-2]])
    with pytest.raises(UserError, match="output is missing"):
        main([*arguments[:2], *arguments[4:]])

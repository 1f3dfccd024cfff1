"""Flags, the empty block and its loss, with Qwen3's own template; reading responses."""

import doctest

import numpy as np
import pytest

import alignment.chat.thinking
from alignment.chat.masks import encode_messages, encode_prompt
from alignment.chat.template import CHATML
from alignment.chat.thinking import EMPTY_BLOCK, last_flag, mode_of, parse_response
from alignment.data.prompts import build_prompts
from alignment.data.sft_rows import encode_sft_rows
from alignment.errors import UserError
from tests.chat_templates import QWEN3
from tests.tiny import tiny_tokenizer
from verifiers import verify
from verifiers.response import outside_thinking

TEMPLATES = {"qwen3": QWEN3, "chatml": CHATML}

THINKS: dict = {"role": "assistant", "content": "<think>\ntwo and three\n</think>\n\n5"}
PLAIN: dict = {"role": "assistant", "content": "It is 5."}
CALL: dict = {
    "role": "assistant",
    "content": "<think>\nI have to multiply\n</think>\n\n",
    "tool_calls": [{"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12 * 12"}}}],
}
RESULT: dict = {"role": "tool", "content": "the result is 144"}


def user(flag="", text="What is 2 + 3?"):
    return {"role": "user", "content": f"{text} {flag}".strip()}


def system(flag):
    return {"role": "system", "content": flag}


def tokenizer_with(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=TEMPLATES)
def tokenizer(request):
    return tokenizer_with(TEMPLATES[request.param])


def scored(tokenizer, chat):
    return [tokenizer.decode(chat.token_ids[turn.start : turn.end]) for turn in chat.turns]


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "mode"),
    [
        ([user()], None),
        ([user("/no_think")], "no_think"),
        ([user("/think")], "thinking"),
        ([user("/think /no_think")], "no_think"),
        ([user("/no_think\n/think")], "thinking"),
        ([system("/no_think"), user()], "no_think"),
        ([system("/no_think"), user("/think")], "thinking"),
        ([user("/no_think"), PLAIN, user()], "no_think"),
        ([user("/no_think"), PLAIN, user("/think")], "thinking"),
        ([user("/think"), THINKS, system("/no_think"), user()], "no_think"),
        ([user(), {"role": "assistant", "content": "/no_think"}, user()], None),
        ([user(), CALL, {"role": "tool", "content": "/no_think"}], None),
        ([user("in the folder /no_think/x")], None),
        ([user("what does '/no_think' mean?")], None),
    ],
)
def test_the_last_flag_of_user_and_system_turns_decides(messages, mode):
    assert last_flag(messages) == mode
    assert mode_of(messages) == (mode or "thinking")
    assert mode_of(messages, {"enable_thinking": False}) == "no_think"
    assert mode_of(messages, {"enable_thinking": True}) == (mode or "thinking")


@pytest.mark.parametrize("flagged", [[user("/no_think")], [system("/no_think"), user()]])
def test_the_empty_block_carries_loss_behind_no_think_and_nowhere_else(tokenizer, flagged):
    chat = encode_messages(tokenizer, [*flagged, PLAIN])
    assert scored(tokenizer, chat) == [EMPTY_BLOCK + "It is 5.<|im_end|>"]
    for other in ([user()], [user("/think")], [user("/no_think /think")]):
        chat = encode_messages(tokenizer, [*other, PLAIN])
        assert scored(tokenizer, chat) == ["It is 5.<|im_end|>"]


def test_policies_of_the_empty_block(tokenizer):
    messages = [user("/no_think"), PLAIN, user("/think", "And again?"), THINKS]
    whole = EMPTY_BLOCK + "It is 5.<|im_end|>"
    thinking = "<think>\ntwo and three\n</think>\n\n5<|im_end|>"
    chats = {p: encode_messages(tokenizer, messages, empty_thinking=p) for p in ("flagged", "masked", "scored")}
    assert scored(tokenizer, chats["flagged"]) == scored(tokenizer, chats["scored"]) == [whole, thinking]
    assert scored(tokenizer, chats["masked"]) == ["It is 5.<|im_end|>", thinking]
    assert chats["flagged"].token_ids == chats["masked"].token_ids == chats["scored"].token_ids
    with pytest.raises(UserError, match="empty_thinking must be"):
        encode_messages(tokenizer, messages, empty_thinking="kept")


def test_an_answer_without_thinking_teaches_no_skipping_where_no_flag_asks_for_it():
    """In Qwen3's template such an answer is shown with an empty block; only `scored` trains it."""
    tokenizer = tokenizer_with(QWEN3)
    block = tokenizer(EMPTY_BLOCK, add_special_tokens=False).input_ids
    for policy, expected in (("flagged", 0), ("masked", 0), ("scored", len(block))):
        chat = encode_messages(tokenizer, [user(), PLAIN], empty_thinking=policy)
        start = len(encode_prompt(tokenizer, [user()]))
        assert chat.token_ids[start : start + len(block)] == block
        assert chat.loss_mask[start : start + len(block)].sum() == expected


def test_enable_thinking_false_gives_the_tokens_of_no_think(tokenizer):
    """From the assistant's header on they are the same; with the variable the block is in the prompt, so unscored."""
    off = {"enable_thinking": False}
    by_variable = encode_messages(tokenizer, [user("/no_think"), PLAIN], template_arguments=off)
    by_flag = encode_messages(tokenizer, [user("/no_think"), PLAIN])
    assert by_variable.token_ids == by_flag.token_ids
    prompt = encode_prompt(tokenizer, [user("/no_think")])
    block = tokenizer(EMPTY_BLOCK, add_special_tokens=False).input_ids
    assert encode_prompt(tokenizer, [user("/no_think")], template_arguments=off) == prompt + block
    assert scored(tokenizer, by_variable) == ["It is 5.<|im_end|>"]
    assert by_flag.turns[0].start == len(prompt)
    assert by_variable.turns[0].start == len(prompt) + len(block)


def test_what_the_model_has_to_write_follows_the_prompt_of_inference(tokenizer):
    dialogues = [
        [user("/no_think"), PLAIN],
        [system("/no_think"), user(), PLAIN],
        [user("/think"), THINKS],
        [user("/no_think"), PLAIN, user("/think"), THINKS],
        [user("/think"), THINKS, user("/no_think"), PLAIN],
        [user(), CALL, RESULT, THINKS],
        [user("/no_think"), {**CALL, "content": ""}, RESULT, PLAIN],
    ]
    for messages in dialogues:
        chat = encode_messages(tokenizer, messages, train_on="last_assistant")
        assert chat.token_ids[: chat.turns[0].start] == encode_prompt(tokenizer, messages[:-1])


def test_a_call_without_thinking_has_the_empty_block_before_it(tokenizer):
    chat = encode_messages(tokenizer, [user("/no_think"), {**CALL, "content": ""}, RESULT, PLAIN])
    texts = scored(tokenizer, chat)
    assert texts[0].startswith(EMPTY_BLOCK + "<tool_call>\n") and texts[1] == EMPTY_BLOCK + "It is 5.<|im_end|>"


def test_an_answer_that_has_the_block_already_is_the_same_as_one_without(tokenizer):
    with_block = {"role": "assistant", "content": EMPTY_BLOCK + "It is 5."}
    a, b = (encode_messages(tokenizer, [user("/no_think"), m]) for m in (PLAIN, with_block))
    assert a.token_ids == b.token_ids and np.array_equal(a.loss_mask, b.loss_mask)


def test_thinking_against_the_last_flag_is_refused(tokenizer):
    for message in (THINKS, {"role": "assistant", "reasoning_content": "two and three", "content": "5"}):
        with pytest.raises(UserError, match=r"message 2 thinks, although /no_think"):
            encode_messages(tokenizer, [user("/no_think"), message])
        encode_messages(tokenizer, [user("/no_think"), {**message, "train": False}, user("/think"), THINKS])
    with pytest.raises(UserError, match=r"row 2: message 2 thinks"):
        encode_sft_rows([{"messages": [user(), PLAIN]}, {"messages": [user("/no_think"), THINKS]}], tokenizer, 500)


def test_earlier_thinking_is_stripped_in_a_prompt_and_kept_where_it_is_trained():
    tokenizer = tokenizer_with(QWEN3)
    history = [user("/think"), THINKS, user("/no_think", "And again?")]
    assert "two and three" not in tokenizer.decode(encode_prompt(tokenizer, history))
    trained = encode_messages(tokenizer, [*history, PLAIN])
    assert scored(tokenizer, trained) == [
        "<think>\ntwo and three\n</think>\n\n5<|im_end|>",
        EMPTY_BLOCK + "It is 5.<|im_end|>",
    ]


def test_thinking_between_tool_calls_of_one_question_stays_in_the_prompt():
    tokenizer = tokenizer_with(QWEN3)
    assert "I have to multiply" in tokenizer.decode(encode_prompt(tokenizer, [user(), CALL, RESULT]))
    later = [user(), CALL, RESULT, THINKS, user()]
    assert "I have to multiply" not in tokenizer.decode(encode_prompt(tokenizer, later))
    chat = encode_messages(tokenizer, [*later, THINKS])
    assert [text.startswith("<think>\n") for text in scored(tokenizer, chat)] == [True] * 3


# --- responses --------------------------------------------------------------------------------------------------------


def test_docstring_examples():
    assert doctest.testmod(alignment.chat.thinking).failed == 0


@pytest.mark.parametrize(
    ("text", "opened", "thinking", "answer", "clean"),
    [
        ("4", False, "", "4", True),
        ("<think>\nhm\n</think>\n\n4", False, "hm", "4", True),
        (EMPTY_BLOCK + "4", False, "", "4", True),
        ("hm</think>4", True, "hm", "4", True),
        ("hm</think>4", False, "hm", "4", False),
        ("<think>hm</think><think>again</think>4", False, "hmagain", "4", False),
        ("<think>hm</think>or</think>4", False, "hmor", "4", False),
        ("<think>hm<think>hm</think>4", False, "hmhm", "4", False),
        ("x <think>hm</think>4", False, "x hm", "4", False),
        ("<think>hm", False, "hm", None, False),
        ("hm", True, "hm", None, False),
        ("<think>hm</think>4<think>again", False, "hm4again", None, False),
        ("</think>4", False, "", "4", False),
        ("", False, "", "", True),
        ("<think>hm</think>", False, "hm", "", True),
    ],
)
def test_responses_are_read_whatever_tags_are_missing_or_repeated(text, opened, thinking, answer, clean):
    parsed = parse_response(text, opened)
    assert (parsed.thinking, parsed.answer, parsed.clean) == (thinking, answer, clean)
    seen_by_verifiers = outside_thinking("<think>" + text if opened else text)
    assert (seen_by_verifiers is None) == (parsed.answer is None)
    assert seen_by_verifiers is None or seen_by_verifiers.strip() == parsed.answer


def test_verifiers_see_no_answer_in_thinking_that_the_prompt_opened_and_nothing_closed():
    row = {"answer": "4", "think_opened": True}
    assert verify("math", r"is it \boxed{4}", row).status == "unparsed"
    assert verify("math", r"hm</think> \boxed{4}", row).status == "pass"
    assert verify("math", r"is it \boxed{4}", {"answer": "4"}).status == "pass"
    assert verify("all_of", r"is it \boxed{4}", {**row, "verifiers": ["math", "format"]}).status != "pass"


def test_prompts_say_when_the_template_opens_a_thinking_block():
    tokenizer = tokenizer_with(QWEN3)
    (plain,) = build_prompts([{"question": "2 + 3?"}], tokenizer, max_prompt_length=100)
    assert "think_opened" not in plain.row
    (off,) = build_prompts([{"question": "2 + 3?"}], tokenizer, max_prompt_length=100, enable_thinking=False)
    assert "think_opened" not in off.row and tokenizer.decode(off.token_ids).endswith(EMPTY_BLOCK)
    tokenizer.chat_template = QWEN3 + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"
    (opened,) = build_prompts([{"question": "2 + 3?"}], tokenizer, max_prompt_length=100)
    assert opened.row["think_opened"] is True and opened.id == plain.id

import logging

import pytest

from alignment.data.prompts import build_prompts
from alignment.errors import UserError
from tests.chat_templates import QWEN3_LIKE
from tests.test_chat_masks import PLAIN1, USER1, USER2, tokenizer_with
from tests.tiny import tiny_tokenizer


def build(rows, tokenizer=None, **settings):
    return build_prompts(rows, tokenizer or tiny_tokenizer(), **{"max_prompt_length": 128, **settings})


def test_questions_and_messages_are_rendered_with_the_header_of_the_answer():
    tokenizer = tiny_tokenizer()
    question, messages, prompt = build(
        [{"question": "Why?"}, {"messages": [USER1, PLAIN1, USER2]}, {"prompt": [{"role": "user", "content": "Why?"}]}]
    )
    assert tokenizer.decode(question.token_ids) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert question.messages == [{"role": "user", "content": "Why?"}] == prompt.messages
    assert question.token_ids == prompt.token_ids
    assert str(tokenizer.decode(messages.token_ids)).endswith("And 17 * 4?<|im_end|>\n<|im_start|>assistant\n")


def test_text_prompts_stay_as_they_are():
    tokenizer = tiny_tokenizer()
    (prompt,) = build([{"prompt": "Once upon a time"}])
    assert tokenizer.decode(prompt.token_ids) == "Once upon a time" and prompt.messages == []


def test_the_row_travels_with_its_prompt():
    row = {"question": "Why?", "answer": "42"}
    assert build([row])[0].row == row


def test_ids_come_from_the_row_or_from_its_content_and_not_from_its_place():
    a, b = {"question": "a", "answer": "1"}, {"answer": "2", "question": "b"}
    forward, backward = build([a, b]), build([b, {"answer": "1", "question": "a"}])
    assert [p.id for p in forward] == [p.id for p in reversed(backward)]
    assert len({p.id for p in forward}) == 2
    assert [p.id for p in build([{**a, "id": 7}, {**b, "id": "x"}])] == ["7", "x"]


def test_equal_ids_and_equal_rows_are_errors_that_name_the_rows():
    with pytest.raises(UserError, match=r"d.jsonl, row 3 has the same id as row 1: '7'"):
        build([{"question": "a", "id": 7}, {"question": "b"}, {"question": "c", "id": "7"}], source="d.jsonl")
    with pytest.raises(UserError, match="row 2 is the same as row 1"):
        build([{"question": "a"}, {"question": "a"}])


def test_over_long_prompts_are_left_out_with_a_warning_that_counts_them(caplog):
    rows = [{"question": "word " * n} for n in (1, 500, 2, 600)]
    with caplog.at_level(logging.WARNING):
        prompts = build(rows, source="d.jsonl")
    assert [p.row for p in prompts] == [rows[0], rows[2]]
    assert "2 of 4 prompts are longer than 128 tokens and left out (d.jsonl, row 2, 4)" in caplog.text
    with pytest.raises(UserError, match="no prompt is left, all are too long"):
        build(rows, max_prompt_length=3)


def test_thinking_mode_reaches_the_template_unless_the_row_decides():
    tokenizer = tokenizer_with(QWEN3_LIKE)
    row = {"question": "Why?"}
    own = {**row, "chat_template_kwargs": {"enable_thinking": True}}
    for rows, setting, empty in (
        ([row], None, False),
        ([row], True, False),
        ([row], False, True),
        ([own], False, False),
    ):
        (prompt,) = build(rows, tokenizer, enable_thinking=setting)
        assert str(tokenizer.decode(prompt.token_ids)).endswith("</think>\n\n") == empty


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"answer": "x"}, r"row 2: needs the column .*\['answer'\]"),
        ({"messages": [USER1, PLAIN1]}, "row 2: the conversation ends with an assistant turn"),
        ({"messages": [{"role": "user"}]}, "row 2: message 1 .* neither content"),
    ],
)
def test_malformed_rows_are_named(row, error):
    with pytest.raises(UserError, match=error):
        build([{"question": "a"}, row])


def test_no_rows_is_an_error():
    with pytest.raises(UserError, match="there are no rows"):
        build([])

import numpy as np
import pytest

from alignment.chat.masks import encode_messages
from alignment.data.prompts import build_prompts
from alignment.data.sft_rows import encode_row, encode_sft_rows
from alignment.errors import UserError
from alignment.packing import pack
from tests.chat_templates import LLAMA3_LIKE, PLAIN_TEXT, QWEN3_LIKE
from tests.test_chat_masks import (
    DIALOGUES,
    PLAIN1,
    PLAIN2,
    SYSTEM,
    THINKING1,
    USER1,
    USER2,
    sentencepiece_like_tokenizer,
    tokenizer_with,
)
from tests.tiny import tiny_tokenizer

TEXT_ROW: dict = {"prompt": "2 + 3 =", "completion": " 5"}


def scored(tokenizer, tree):
    (segment,) = tree.segments
    return tokenizer.decode([t for t, s in zip(segment.token_ids, segment.scored, strict=True) if s])


def test_messages_give_one_segment_with_the_mask_of_the_chat():
    tokenizer = tiny_tokenizer()
    (tree,), report = encode_sft_rows([{"messages": DIALOGUES["multi"]}], tokenizer, 512)
    chat = encode_messages(tokenizer, DIALOGUES["multi"])
    assert list(tree.segments[0].token_ids) == chat.token_ids
    assert np.asarray(tree.segments[0].scored).tolist() == chat.loss_mask.tolist()
    assert tree.segments[0].columns == {}
    assert (report.tokens, report.scored_tokens) == (len(chat.token_ids), chat.loss_mask.sum())
    assert (report.rows, report.kept, report.truncated, report.dropped, report.without_end) == (1, 1, 0, 0, 0)


def test_text_completions_are_scored_with_eos_behind_them():
    tokenizer = tiny_tokenizer()
    (tree,), _ = encode_sft_rows([TEXT_ROW], tokenizer, 64)
    assert tokenizer.decode(list(tree.segments[0].token_ids)) == "2 + 3 = 5<|im_end|>"
    assert scored(tokenizer, tree) == " 5<|im_end|>"


def test_an_eos_that_is_there_already_is_not_doubled():
    tokenizer = tiny_tokenizer()
    chat = encode_row({"prompt": "a", "completion": "b<|im_end|>"}, tokenizer)
    assert chat.token_ids.count(tokenizer.eos_token_id) == 1


def test_text_rows_score_all_but_the_first_token():
    tokenizer = tiny_tokenizer()
    (tree,), _ = encode_sft_rows([{"text": "So the answer is 59."}], tokenizer, 64)
    ids, mask = tree.segments[0].token_ids, np.asarray(tree.segments[0].scored)
    assert ids[-1] == tokenizer.eos_token_id
    assert not mask[0] and mask[1:].all()


def test_a_tokenizer_that_starts_texts_with_bos_does_so_here_too():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(LLAMA3_LIKE)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    assert encode_row({"text": "hello"}, tokenizer).token_ids[0] == bos
    row = encode_row(TEXT_ROW, tokenizer)
    (prompt,) = build_prompts([{"prompt": "2 + 3 ="}], tokenizer, max_prompt_length=64)
    assert row.token_ids[0] == bos and row.token_ids[: len(prompt.token_ids)] == prompt.token_ids


def test_prompt_and_completion_messages_train_the_completion_only():
    tokenizer = tiny_tokenizer()
    row = {"prompt": [USER1, PLAIN1, USER2], "completion": [PLAIN2, USER1, PLAIN1]}
    (tree,), _ = encode_sft_rows([row], tokenizer, 512)
    assert scored(tokenizer, tree) == "68, naïve 🙂<|im_end|>It is 5.<|im_end|>"


@pytest.mark.parametrize("template", [QWEN3_LIKE, LLAMA3_LIKE, PLAIN_TEXT])
def test_a_row_begins_with_the_tokens_of_its_generation_prompt(template):
    tokenizer = tokenizer_with(template)
    (prompt,) = build_prompts([{"prompt": [SYSTEM, USER1, PLAIN1, USER2]}], tokenizer, max_prompt_length=512)
    row = {"prompt": [SYSTEM, USER1, PLAIN1, USER2], "completion": [THINKING1]}
    assert encode_row(row, tokenizer).token_ids[: len(prompt.token_ids)] == prompt.token_ids


def test_text_prompts_are_a_prefix_also_with_a_tokenizer_that_marks_the_start_of_a_text():
    tokenizer = sentencepiece_like_tokenizer()
    (prompt,) = build_prompts([{"prompt": "What is 2 + 3?"}], tokenizer, max_prompt_length=64)
    row = encode_row({"prompt": "What is 2 + 3?", "completion": "\n5"}, tokenizer)
    assert row.token_ids[: len(prompt.token_ids)] == prompt.token_ids
    assert tokenizer.decode(row.token_ids) == "What is 2 + 3?\n5</s>"


def test_the_columns_tools_and_chat_template_kwargs_reach_the_template():
    tokenizer = tiny_tokenizer()
    messages = [USER1, PLAIN1]
    tool = '[{"type": "function", "function": {"name": "calculator"}}]'
    assert "# Tools" in tokenizer.decode(encode_row({"messages": messages, "tools": tool}, tokenizer).token_ids)
    row = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
    assert "<think>\n\n</think>" in tokenizer.decode(encode_row(row, tokenizer).token_ids)
    with pytest.raises(UserError, match="column tools is not valid JSON"):
        encode_row({"messages": messages, "tools": "[{"}, tokenizer)


def test_overflow_truncates_drops_or_refuses_and_counts():
    tokenizer = tiny_tokenizer()
    rows = [TEXT_ROW, {"prompt": "2 + 3 =", "completion": " 5" * 50}, {"prompt": "x " * 50, "completion": "y"}]
    trees, report = encode_sft_rows(rows, tokenizer, 20, overflow="truncate")
    assert (report.truncated, report.dropped, report.without_scored, report.without_end) == (2, 0, 1, 1)
    assert [t.tokens for t in trees] == [min(n, 20) for n in report.lengths_R[:2]]
    assert report.kept_rows_K.tolist() == [0, 1] and report.lengths_R.max() > 20
    trees, report = encode_sft_rows(rows, tokenizer, 20, overflow="drop")
    assert (report.truncated, report.dropped, report.kept) == (0, 2, 1) and "2 dropped" in report.summary()
    with pytest.raises(UserError, match=r"row 2 has .* tokens, more than max_length 20.*overflow"):
        encode_sft_rows(rows, tokenizer, 20, overflow="error")


def test_truncation_of_a_conversation_counts_the_turn_that_lost_its_end():
    tokenizer = tiny_tokenizer()
    chat = encode_messages(tokenizer, DIALOGUES["multi"])
    first, second = chat.turns
    row = {"messages": DIALOGUES["multi"]}
    for length, without_end in ((second.end, 0), (second.end - 1, 1), (second.start, 0), (first.end, 0)):
        _, report = encode_sft_rows([row], tokenizer, length)
        assert report.without_end == without_end, length


def test_rows_of_a_template_without_an_end_token_are_counted():
    _, report = encode_sft_rows([{"messages": [USER1, PLAIN1]}], tokenizer_with(PLAIN_TEXT), 64)
    assert report.without_end == 1 and "lacks its end token" in report.summary()


def test_rows_without_a_scored_token_are_left_out_and_counted():
    tokenizer = tiny_tokenizer()
    rows = [{"messages": [USER1]}, {"messages": [USER1, PLAIN1]}, {"messages": [USER1, {**PLAIN1, "weight": 0}]}]
    trees, report = encode_sft_rows(rows, tokenizer, 64)
    assert len(trees) == 1 and report.without_scored == 2 and report.kept_rows_K.tolist() == [1]
    with pytest.raises(UserError, match="no row is left to train on"):
        encode_sft_rows(rows[:1], tokenizer, 64)


def test_weights_become_a_column_of_every_row_when_one_differs_from_1():
    tokenizer = tiny_tokenizer()
    rows = [{"messages": [USER1, {**PLAIN1, "weight": 0.25}]}, {"messages": [USER1, PLAIN1]}]
    trees, _ = encode_sft_rows(rows, tokenizer, 64)
    for tree, weight in zip(trees, (0.25, 1.0)):
        column = tree.segments[0].columns["weights"]
        assert column.dtype == np.float32 and set(column[tree.segments[0].scored]) == {weight}
    batch = pack(trees)
    assert sorted(set(batch.columns["weights"].tolist())) == [0.25, 1.0]


def test_last_assistant_trains_the_last_turn_only():
    tokenizer = tiny_tokenizer()
    (tree,), _ = encode_sft_rows([{"messages": DIALOGUES["multi"]}], tokenizer, 512, train_on="last_assistant")
    assert scored(tokenizer, tree) == "68, naïve 🙂<|im_end|>"


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"question": "x"}, r"row 2: needs the column `messages`.*\['question'\]"),
        ({"messages": []}, "row 2: messages must be a non-empty list"),
        ({"prompt": "x", "completion": [PLAIN1]}, "row 2: prompt and completion must both"),
        ({"text": 5}, "row 2: the column `text` must hold text, got int"),
        ({"messages": [USER1, {"role": "assistant", "content": 5}]}, "row 2: the content of message 2"),
    ],
)
def test_a_row_that_cannot_be_encoded_is_named(row, error):
    with pytest.raises(UserError, match=error):
        encode_sft_rows([TEXT_ROW, row], tiny_tokenizer(), 64)

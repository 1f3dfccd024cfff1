import copy

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from alignment.chat.masks import encode_messages, encode_prompt
from alignment.chat.template import CHATML
from alignment.errors import UserError
from tests.chat_templates import LLAMA3_LIKE, LLAMA3_TOKENS, PLAIN_TEXT, QWEN3_LIKE
from tests.tiny import CORPUS, tiny_tokenizer

USER1: dict = {"role": "user", "content": "What is 2 + 3?"}
USER2: dict = {"role": "user", "content": "And 17 * 4?"}
THINKING1: dict = {"role": "assistant", "content": "<think>\ntwo and three\n</think>\n\n5"}
THINKING2: dict = {"role": "assistant", "content": "<think>\nfour times 17\n</think>\n\n68"}
PLAIN1: dict = {"role": "assistant", "content": "It is 5."}
PLAIN2: dict = {"role": "assistant", "content": "68, naïve 🙂"}
SYSTEM: dict = {"role": "system", "content": "You are a helpful assistant."}
CALL: dict = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12 * 12"}}}],
}
RESULT: dict = {"role": "tool", "content": "the result is 144"}
DIALOGUES: dict[str, list[dict]] = {
    "single": [USER1, PLAIN1],
    "multi": [SYSTEM, USER1, PLAIN1, USER2, PLAIN2],
    "thinking": [SYSTEM, USER1, THINKING1, USER2, THINKING2],
    "mixed": [USER1, THINKING1, USER2, PLAIN2, USER1, PLAIN1],
    "tools": [USER1, CALL, RESULT, PLAIN1, USER2, THINKING2],
}


def tokenizer_with(template):
    tokenizer = tiny_tokenizer()
    if template is LLAMA3_LIKE:
        tokenizer.add_tokens([AddedToken(t, special=True) for t in LLAMA3_TOKENS], special_tokens=True)
        tokenizer.bos_token, tokenizer.eos_token = "<|begin_of_text|>", "<|eot_id|>"
    tokenizer.chat_template = template
    return tokenizer


def scored_texts(tokenizer, chat):
    return [tokenizer.decode(chat.token_ids[turn.start : turn.end]) for turn in chat.turns]


def masked_text(tokenizer, chat):
    return tokenizer.decode([t for t, scored in zip(chat.token_ids, chat.loss_mask) if not scored])


TEMPLATES = {"chatml": CHATML, "qwen3": QWEN3_LIKE, "llama3": LLAMA3_LIKE}
CASES = [(t, d) for t in TEMPLATES for d in DIALOGUES if (t, d) != ("llama3", "tools")]


@pytest.mark.parametrize(("template", "dialogue"), CASES)
def test_every_trained_turn_ends_with_its_end_token_and_no_other_role_carries_loss(template, dialogue):
    tokenizer, messages = tokenizer_with(TEMPLATES[template]), DIALOGUES[dialogue]
    chat = encode_messages(tokenizer, messages)
    end = tokenizer.eos_token_id
    assert len(chat.turns) == sum(m["role"] == "assistant" for m in messages)
    assert all(turn.ended and chat.token_ids[turn.end - 1] == end for turn in chat.turns)
    assert sum(chat.token_ids[i] == end for i in np.flatnonzero(chat.loss_mask)) == len(chat.turns)
    unscored = masked_text(tokenizer, chat)
    for message in messages:
        if message["role"] != "assistant":
            assert message["content"] in unscored
            assert not any(message["content"] in text for text in scored_texts(tokenizer, chat))


@pytest.mark.parametrize(("template", "dialogue"), CASES)
def test_what_precedes_a_turn_is_the_prompt_of_inference_when_the_history_is_not_trained(template, dialogue):
    tokenizer, messages = tokenizer_with(TEMPLATES[template]), DIALOGUES[dialogue]
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        chat = encode_messages(tokenizer, messages[: i + 1], train_on="last_assistant", empty_thinking="scored")
        assert chat.token_ids[: chat.turns[0].start] == encode_prompt(tokenizer, messages[:i])


@pytest.mark.parametrize("dialogue", ["single", "multi", "thinking", "mixed"])
@pytest.mark.parametrize("template", [CHATML, LLAMA3_LIKE])
def test_templates_that_keep_prefixes_show_every_turn_of_one_row_behind_its_inference_prompt(template, dialogue):
    tokenizer, messages = tokenizer_with(template), DIALOGUES[dialogue]
    chat = encode_messages(tokenizer, messages)
    for turn in chat.turns:
        assert chat.token_ids[: turn.start] == encode_prompt(tokenizer, messages[: turn.message])


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_mask_equals_the_one_of_the_tokenizer_where_the_template_has_generation_markers(dialogue):
    tokenizer, messages = tokenizer_with(CHATML), DIALOGUES[dialogue]
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ours = encode_messages(tokenizer, messages)
    n = len(ours.token_ids)
    assert ours.token_ids == theirs["input_ids"][:n]
    assert ours.loss_mask.tolist() == [bool(m) for m in theirs["assistant_masks"][:n]]
    assert not any(theirs["assistant_masks"][n:])


def test_generation_markers_change_neither_tokens_nor_mask():
    bare = CHATML.replace("{%- generation %}\n", "").replace("{%- endgeneration %}\n", "")
    assert "generation %}" not in bare
    for messages in DIALOGUES.values():
        with_markers = encode_messages(tokenizer_with(CHATML), messages)
        without = encode_messages(tokenizer_with(bare), messages)
        assert with_markers.token_ids == without.token_ids
        assert np.array_equal(with_markers.loss_mask, without.loss_mask)


def test_thinking_of_every_trained_turn_survives_a_template_that_strips_earlier_turns():
    tokenizer, messages = tokenizer_with(QWEN3_LIKE), DIALOGUES["thinking"]
    assert "two and three" not in tokenizer.apply_chat_template(messages, tokenize=False)
    assert scored_texts(tokenizer, encode_messages(tokenizer, messages)) == [
        "<think>\ntwo and three\n</think>\n\n5<|im_end|>",
        "<think>\nfour times 17\n</think>\n\n68<|im_end|>",
    ]


def test_thinking_of_a_turn_that_is_not_trained_is_stripped_as_at_inference():
    tokenizer, messages = tokenizer_with(QWEN3_LIKE), DIALOGUES["thinking"]
    chat = encode_messages(tokenizer, messages, train_on="last_assistant")
    assert "two and three" not in tokenizer.decode(chat.token_ids)
    assert scored_texts(tokenizer, chat) == ["<think>\nfour times 17\n</think>\n\n68<|im_end|>"]


def test_reasoning_content_gives_the_same_tokens_as_a_block_in_the_content():
    tokenizer = tokenizer_with(QWEN3_LIKE)
    split = {"role": "assistant", "reasoning_content": "two and three", "content": "5"}
    a, b = (encode_messages(tokenizer, [USER1, m, USER2, THINKING2]) for m in (THINKING1, split))
    assert a.token_ids == b.token_ids and np.array_equal(a.loss_mask, b.loss_mask)


def test_an_empty_thinking_block_carries_no_loss_unless_asked_for():
    tokenizer = tokenizer_with(QWEN3_LIKE)
    masked = encode_messages(tokenizer, [USER1, PLAIN1])
    scored = encode_messages(tokenizer, [USER1, PLAIN1], empty_thinking="scored")
    assert tokenizer.decode(masked.token_ids) == tokenizer.decode(scored.token_ids)
    assert scored_texts(tokenizer, masked) == ["It is 5.<|im_end|>"]
    assert scored_texts(tokenizer, scored) == ["<think>\n\n</think>\n\nIt is 5.<|im_end|>"]


@pytest.mark.parametrize("template", [QWEN3_LIKE, CHATML])
def test_a_non_thinking_row_is_the_prompt_of_non_thinking_mode_and_the_answer(template):
    tokenizer, off = tokenizer_with(template), {"enable_thinking": False}
    chat = encode_messages(tokenizer, [USER1, PLAIN1], template_arguments=off)
    assert chat.token_ids[: chat.turns[0].start] == encode_prompt(tokenizer, [USER1], template_arguments=off)
    assert scored_texts(tokenizer, chat) == ["It is 5.<|im_end|>"]


@pytest.mark.parametrize("template", [QWEN3_LIKE, CHATML])
def test_thinking_in_non_thinking_mode_is_refused(template):
    tokenizer = tokenizer_with(template)
    with pytest.raises(UserError, match="enable_thinking"):
        encode_messages(tokenizer, [USER1, THINKING1], template_arguments={"enable_thinking": False})
    chat = encode_messages(tokenizer, [USER1, THINKING1], template_arguments={"enable_thinking": True})
    assert scored_texts(tokenizer, chat) == ["<think>\ntwo and three\n</think>\n\n5<|im_end|>"]


def test_tool_calls_are_trained_and_tool_results_are_not():
    for template in (CHATML, QWEN3_LIKE):
        tokenizer = tokenizer_with(template)
        chat = encode_messages(tokenizer, DIALOGUES["tools"])
        texts = scored_texts(tokenizer, chat)
        assert '"calculator"' in texts[0] and texts[0].endswith("</tool_call><|im_end|>")
        assert "144" not in "".join(texts) and "the result is 144" in masked_text(tokenizer, chat)


def test_a_template_that_drops_tool_calls_is_refused():
    with pytest.raises(UserError, match=r"'calculator'.*message 2.*chat_template"):
        encode_messages(tokenizer_with(LLAMA3_LIKE), DIALOGUES["tools"])


def test_a_template_that_drops_thinking_is_refused():
    dropping = LLAMA3_LIKE.replace("m.content | trim", "m.content.split('</think>')[-1]")
    with pytest.raises(UserError, match="drops the thinking of message 2"):
        encode_messages(tokenizer_with(dropping), [USER1, THINKING1])


def test_a_template_without_the_prefix_property_is_refused_with_the_remedy():
    counting = "{{ messages | length }} messages\n" + LLAMA3_LIKE
    with pytest.raises(UserError, match=r"message 2 behind a different text.*chat_template"):
        encode_messages(tokenizer_with(counting), [USER1, PLAIN1])
    rewriting = LLAMA3_LIKE.replace("m.content | trim", "m.content[: (9 if loop.last or m.role == 'user' else 2)]")
    with pytest.raises(UserError, match=r"message 2 beyond its thinking.*last_assistant"):
        encode_messages(tokenizer_with(rewriting), [USER1, PLAIN1, USER2, PLAIN1])


def test_train_and_weight_switch_turns_off_and_scale_them():
    tokenizer = tokenizer_with(CHATML)
    off = encode_messages(tokenizer, [USER1, {**PLAIN1, "train": False}, USER2, {**PLAIN2, "weight": 0.5}])
    assert [turn.message for turn in off.turns] == [3]
    assert set(off.weights.tolist()) == {0.0, 0.5}
    assert np.array_equal(off.weights > 0, off.loss_mask)
    both = encode_messages(tokenizer, [USER1, {**PLAIN1, "weight": 0}, USER2, PLAIN2])
    assert both.token_ids == off.token_ids and np.array_equal(both.loss_mask, off.loss_mask)


def test_a_conversation_without_a_trained_turn_is_all_context():
    tokenizer = tokenizer_with(CHATML)
    chat = encode_messages(tokenizer, [USER1, {**PLAIN1, "train": False}])
    assert "It is 5." in tokenizer.decode(chat.token_ids) and not chat.loss_mask.any() and not chat.turns


def test_messages_behind_the_last_trained_turn_are_left_out():
    tokenizer = tokenizer_with(CHATML)
    assert (
        encode_messages(tokenizer, [USER1, PLAIN1, USER2]).token_ids
        == encode_messages(tokenizer, [USER1, PLAIN1]).token_ids
    )


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "non-empty list"),
        ("hello", "non-empty list"),
        ([{"from": "human", "value": "hi"}], "rename from/value"),
        ([{"role": "user", "content": 3}], "message 1 must be text"),
        ([USER1, {"role": "assistant"}], "message 2 .* neither content nor tool calls"),
        ([PLAIN1], "starts with an assistant message"),
        ([USER1, {**PLAIN1, "weight": -1}], "weight of message 2"),
        ([{**USER1, "weight": 1}, PLAIN1], "only assistant messages carry loss"),
        ([USER1, {**PLAIN1, "train": "no"}], "`train` of message 2"),
    ],
)
def test_malformed_messages_are_named(messages, error):
    with pytest.raises(UserError, match=error):
        encode_messages(tokenizer_with(CHATML), messages)


def test_text_parts_are_joined_and_empty_fields_ignored():
    tokenizer = tokenizer_with(CHATML)
    parts = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}]}
    padded = {**PLAIN1, "tool_calls": None, "weight": None}
    assert (
        encode_messages(tokenizer, [parts, padded]).token_ids == encode_messages(tokenizer, [USER1, PLAIN1]).token_ids
    )


def test_no_token_reaches_from_the_header_into_the_answer():
    """BPE joins the header's last space with the answer's first word; generation never sees that token."""
    tokenizer = tokenizer_with(PLAIN_TEXT)
    chat = encode_messages(tokenizer, [USER1, {"role": "assistant", "content": "assistant"}])
    joined = tokenizer("user: What is 2 + 3?\nassistant: assistant\n").input_ids
    assert len(joined) < len(chat.token_ids)
    assert chat.token_ids[: chat.turns[0].start] == encode_prompt(tokenizer, [USER1])
    assert tokenizer.decode(chat.token_ids) == tokenizer.decode(joined)
    assert not chat.turns[0].ended


def sentencepiece_like_tokenizer():
    """Marks every text's first word with a space, as Llama-2's does."""
    core = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>", "[/INST]"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_that_marks_the_start_of_a_text_gives_the_tokens_of_the_whole_text():
    tokenizer = sentencepiece_like_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'U ' + m.content + '[/INST]' if m.role == 'user' else m.content + '</s>' }}"
        "{% endfor %}"
    )
    messages = [USER1, {"role": "assistant", "content": "the answer"}, USER1, {"role": "assistant", "content": "five"}]
    chat = encode_messages(tokenizer, messages)
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert chat.token_ids == whole
    assert [t.ended for t in chat.turns] == [True, True]
    assert chat.token_ids[: chat.turns[1].start] == encode_prompt(tokenizer, messages[:3])


def test_encoding_leaves_the_messages_unchanged():
    messages = copy.deepcopy(DIALOGUES["tools"])
    encode_messages(tokenizer_with(QWEN3_LIKE), messages)
    assert messages == DIALOGUES["tools"]


STRIPPING = LLAMA3_LIKE.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")


def test_where_the_own_template_drops_thinking_the_training_form_of_trl_serves(monkeypatch):
    monkeypatch.setattr("alignment.chat.masks.get_training_chat_template", lambda tokenizer: LLAMA3_LIKE)
    tokenizer = tokenizer_with(STRIPPING)
    chat = encode_messages(tokenizer, [USER1, THINKING1])
    assert scored_texts(tokenizer, chat) == ["<think>\ntwo and three\n</think>\n\n5<|eot_id|>"]
    assert chat.token_ids[: chat.turns[0].start] == encode_prompt(tokenizer, [USER1])


def test_a_training_form_that_prompts_differently_is_not_used(monkeypatch):
    monkeypatch.setattr("alignment.chat.masks.get_training_chat_template", lambda tokenizer: "X" + LLAMA3_LIKE)
    with pytest.raises(UserError, match="drops the thinking of message 2"):
        encode_messages(tokenizer_with(STRIPPING), [USER1, THINKING1])


def test_an_eos_behind_the_whole_conversation_is_not_part_of_a_turn():
    """As Phi-3's template: every turn ends with its own token and the last one with EOS as well."""
    tokenizer = tokenizer_with(CHATML + "{%- if not add_generation_prompt %}{{- eos_token }}{%- endif %}")
    tokenizer.eos_token = "<|endoftext|>"
    for messages in (DIALOGUES["single"], DIALOGUES["multi"]):
        plain = encode_messages(tokenizer_with(CHATML), messages)
        assert encode_messages(tokenizer, messages).token_ids == plain.token_ids

"""Preference rows as trees: every branch is what it would be alone, shared where it can be, scored where it must be."""

import numpy as np
import pytest

from alignment.chat.masks import encode_messages, encode_prompt
from alignment.data.branches import common_length
from alignment.data.preference_rows import encode_preference_rows
from alignment.data.sft_rows import encode_row
from alignment.errors import UserError
from alignment.packing import pack
from tests.chat_templates import LLAMA3_LIKE, PLAIN_TEXT, QWEN3_LIKE
from tests.test_chat_masks import sentencepiece_like_tokenizer, tokenizer_with
from tests.tiny import tiny_tokenizer

USER = {"role": "user", "content": "What is 2 + 3?"}
GOOD = {"role": "assistant", "content": "2 + 3 = 5. The answer is 5."}
BAD = {"role": "assistant", "content": "2 + 3 = 6. The answer is 6."}
MORE = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "So it is 59."}]
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
TEXTS = {"prompt": "A baker has 48", "chosen": " cakes and sells half", "rejected": " cake"}


def encode(row, tokenizer=None, max_length=512, **settings):
    (tree,), report = encode_preference_rows([row], tokenizer or tiny_tokenizer(), max_length, **settings)
    return tree, report


def branches(tree):
    """Whole token ids and masks of the leaves."""
    leaves = [i for i, s in enumerate(tree.segments) if s.scored is not None]
    root = 0 if tree.segments[0].scored is not None else len(tree.segments[0].token_ids)
    masks = [[False] * root + tree.segments[i].scored.tolist() for i in leaves]
    return [tree.branch_token_ids(i) for i in leaves], masks


def text(tokenizer, ids):
    return tokenizer.decode(list(ids))


@pytest.mark.parametrize("end_token", [None, "<|im_end|>"])
def test_what_is_rewarded_is_the_answer_without_its_thinking(end_token):
    """Rows for DPO keep it. A template whose prompt opens the block has its empty form in the answer's place."""
    thinking = [{**m, "content": f"<think>\nhm\n</think>\n\n{m['content']}"} for m in (GOOD, BAD)]
    row = {"prompt": [USER], "chosen": thinking[:1], "rejected": thinking[1:]}
    tokenizer = tiny_tokenizer()
    thought, plain = (
        [text(tokenizer, ids) for ids in branches(encode(one, tokenizer, end_token=end_token)[0])[0]]
        for one in (row, PAIR)
    )
    assert (thought == plain) == (end_token is not None)
    tokenizer.chat_template += "{%- if add_generation_prompt %}{{- '<think>\n' }}{%- endif %}"
    ids, _ = branches(encode(row, tokenizer, end_token=end_token)[0])
    assert f"<think>\n{'' if end_token else 'hm'}\n</think>\n\n{GOOD['content']}" in text(tokenizer, ids[0])


@pytest.mark.parametrize(
    "prompt",
    [[USER], [{"role": "system", "content": "You are a helpful assistant."}, USER], [USER, GOOD, MORE[0]]],
    ids=["question", "system", "second turn"],
)
@pytest.mark.parametrize(
    "tokenizer",
    [
        tiny_tokenizer(),
        tokenizer_with(QWEN3_LIKE),
        tokenizer_with(LLAMA3_LIKE),
        tokenizer_with(PLAIN_TEXT),
    ],
    ids=["chatml", "qwen3", "llama3", "plain"],
)
def test_every_branch_is_token_for_token_the_conversation_alone(tokenizer, prompt):
    row = {"prompt": prompt, "chosen": [GOOD], "rejected": [BAD]}
    tree, report = encode(row, tokenizer)
    ids, masks = branches(tree)
    for i, answer in enumerate((GOOD, BAD)):
        alone = encode_messages(tokenizer, [*prompt, answer], train_on="last_assistant")
        assert ids[i] == alone.token_ids
        assert masks[i] == alone.loss_mask.tolist()
    assert tree.atomic
    assert [s.parent for s in tree.segments] == [-1, 0, 0]
    assert tree.tokens == report.tokens < report.separate_tokens == len(ids[0]) + len(ids[1])
    pack([tree])


def test_what_generation_starts_from_is_the_shared_root():
    tokenizer = tiny_tokenizer()
    tree, _ = encode(PAIR, tokenizer)
    assert list(tree.segments[0].token_ids) == encode_prompt(tokenizer, [USER])
    assert [text(tokenizer, s.token_ids) for s in tree.segments[1:]] == [
        "2 + 3 = 5. The answer is 5.<|im_end|>",
        "2 + 3 = 6. The answer is 6.<|im_end|>",
    ]
    assert all(s.scored.all() for s in tree.segments[1:])  # words that both answers begin with stay scored in both


def test_a_template_that_shows_the_prompt_differently_shares_what_is_the_same():
    """A thinking block of an earlier turn is stripped for one branch only when a question follows it."""
    tokenizer = tokenizer_with(QWEN3_LIKE)
    thought = {"role": "assistant", "reasoning_content": "2 and 3 is 5", "content": "5"}
    row = {"chosen": [USER, thought], "rejected": [USER, {**thought, "content": "6"}, *MORE]}
    tree, _ = encode(row, tokenizer)
    ids, _ = branches(tree)
    assert ids[0] == encode_messages(tokenizer, row["chosen"]).token_ids
    assert ids[1] == encode_messages(tokenizer, row["rejected"]).token_ids


def test_conversations_without_a_prompt_share_their_first_messages():
    tokenizer = tiny_tokenizer()
    implicit, _ = encode({"chosen": [USER, BAD, *MORE[:1], GOOD], "rejected": [USER, BAD, *MORE[:1], BAD]}, tokenizer)
    explicit, _ = encode({"prompt": [USER, BAD, MORE[0]], "chosen": [GOOD], "rejected": [BAD]}, tokenizer)
    for a, b in zip(implicit.segments, explicit.segments, strict=True):
        assert list(a.token_ids) == list(b.token_ids)
        assert (a.scored is None) == (b.scored is None)
        assert a.scored is None or a.scored.tolist() == b.scored.tolist()


def test_a_text_prompt_that_the_conversations_repeat_stands_once():
    """The columns of HuggingFaceH4/ultrafeedback_binarized."""
    row = {"prompt": USER["content"], "prompt_id": "9f", "chosen": [USER, GOOD], "rejected": [USER, BAD],
           "messages": [USER, GOOD], "score_chosen": 8.0, "score_rejected": 3.0}  # fmt: skip
    repeated, explicit = encode(row)[0], encode(PAIR)[0]
    for a, b in zip(repeated.segments, explicit.segments, strict=True):
        assert list(a.token_ids) == list(b.token_ids)
        assert a.scored is None or a.scored.tolist() == b.scored.tolist()


def test_texts_are_cut_where_the_prompt_ends():
    tokenizer = tiny_tokenizer()
    tree, _ = encode(TEXTS, tokenizer)
    prompt, chosen, rejected = (text(tokenizer, s.token_ids) for s in tree.segments)
    assert (prompt, chosen, rejected) == ("A baker has 48", " cakes and sells half<|im_end|>", " cake<|im_end|>")
    ids, masks = branches(tree)
    for branch, mask, completion in zip(ids, masks, (TEXTS["chosen"], TEXTS["rejected"]), strict=True):
        alone = encode_row({"prompt": TEXTS["prompt"], "completion": completion}, tokenizer)
        assert (branch, mask) == (alone.token_ids, alone.loss_mask.tolist())


@pytest.mark.parametrize(
    "tokenizer", [tiny_tokenizer(), sentencepiece_like_tokenizer()], ids=["bytes", "sentencepiece"]
)
@pytest.mark.parametrize("end", ["cakes are left", "cake is left", "cak", ""])
def test_texts_without_a_prompt_share_tokens_not_characters(tokenizer, end):
    """The texts part in the middle of a word: a character prefix would cut a token in two."""
    whole = "A baker has 48 cakes"
    row = {"chosen": whole, "rejected": "A baker has 48 " + end}
    if row["chosen"] == row["rejected"]:
        pytest.skip("the same text")
    tree, _ = encode(row, tokenizer)
    ids, masks = branches(tree)
    for branch, mask, column in zip(ids, masks, ("chosen", "rejected"), strict=True):
        alone = encode_row({"text": row[column]}, tokenizer)
        assert branch == alone.token_ids
        root = len(tree.segments[0].token_ids)
        assert mask == [False] * root + [True] * (len(branch) - root)
    assert len(tree.segments[0].token_ids) == min(common_length([np.array(i) for i in ids]), *(len(i) - 1 for i in ids))


def test_the_reward_is_read_at_the_end_token_alone_and_more_can_be_shared():
    tokenizer = tiny_tokenizer()
    dpo, _ = encode(PAIR, tokenizer)
    reward, _ = encode({**PAIR, "margin": 0.5}, tokenizer, end_token="<|im_end|>")
    assert branches(reward)[0] == branches(dpo)[0]
    assert text(tokenizer, reward.segments[0].token_ids).endswith("assistant\n2 + 3 =")
    for segment in reward.segments[1:]:
        assert np.flatnonzero(segment.scored).tolist() == [len(segment.token_ids) - 1]
        assert segment.token_ids[-1] == tokenizer.eos_token_id
    columns = [{name: values[-1] for name, values in s.columns.items()} for s in reward.segments[1:]]
    assert columns == [
        {"labels": 1.0, "margins": 0.5, "branches": 2.0},
        {"labels": 0.0, "margins": 0.0, "branches": 2.0},
    ]


def test_an_answer_that_is_the_beginning_of_the_other_keeps_its_own_end():
    tokenizer = tiny_tokenizer()
    row = {"prompt": [USER], "chosen": [{**GOOD, "content": "5"}], "rejected": [{**GOOD, "content": "5, so 5"}]}
    tree, _ = encode(row, tokenizer, end_token="<|im_end|>")
    assert [text(tokenizer, s.token_ids) for s in tree.segments[1:]] == ["<|im_end|>", ", so 5<|im_end|>"]


def test_the_end_token_may_be_what_the_template_writes_behind_the_turn():
    """TRL reads the reward at the last token of the rendered conversation, which is ChatML's new line."""
    tokenizer = tiny_tokenizer()
    tree, _ = encode(PAIR, tokenizer, end_token="\n")
    for ids, answer in zip(branches(tree)[0], (GOOD, BAD), strict=True):
        whole = tokenizer.apply_chat_template([USER, answer], tokenize=False)
        assert ids == tokenizer(whole, add_special_tokens=False).input_ids


def test_text_ends_with_the_end_token_instead_of_eos():
    tokenizer = tiny_tokenizer()
    tree, _ = encode({"chosen": "So 5", "rejected": "So 6"}, tokenizer, end_token="<|endoftext|>")
    assert [text(tokenizer, ids) for ids in branches(tree)[0]] == ["So 5<|endoftext|>", "So 6<|endoftext|>"]


def test_texts_with_nothing_in_common_are_roots_of_their_own_where_only_the_end_is_scored():
    row = {"chosen": "yes", "rejected": "no"}
    tree, _ = encode(row, end_token="<|im_end|>")
    assert [s.parent for s in tree.segments] == [-1, -1]
    assert pack([tree]).rows == 2
    with pytest.raises(UserError, match="row 1: the branches have no first token in common"):
        encode(row)


def test_groups_stand_in_the_order_of_their_labels():
    tokenizer = tiny_tokenizer()
    row = {"prompt": [USER], "completions": ["six", "five", "seven"], "labels": [False, True, False]}
    tree, report = encode(row, tokenizer, end_token="<|im_end|>")
    assert [text(tokenizer, s.token_ids) for s in tree.segments[1:]] == [
        f"{w}<|im_end|>" for w in ("five", "six", "seven")
    ]
    assert [s.columns["labels"][-1] for s in tree.segments[1:]] == [1, 0, 0]
    assert {s.columns["branches"][-1] for s in tree.segments[1:]} == {3}
    assert report.branches == 3
    as_messages = {
        "prompt": [USER],
        "responses": [[{**GOOD, "content": w}] for w in ("six", "five")],
        "scores": [0.2, 0.9],
    }
    tree, _ = encode(as_messages, tokenizer)
    assert [text(tokenizer, s.token_ids) for s in tree.segments[1:]] == ["five<|im_end|>", "six<|im_end|>"]


def test_rows_without_a_preference_are_left_out_and_counted():
    same = {**PAIR, "rejected": [GOOD]}
    tied = {"prompt": "a", "completions": ["b", "c"], "labels": [1, 1]}
    trees, report = encode_preference_rows([same, PAIR, tied], tiny_tokenizer(), 512)
    assert (len(trees), report.identical, report.ties, report.kept_rows_K.tolist()) == (1, 1, 1, [1])
    assert "1 dropped as their branches are the same" in report.summary()
    assert "1 dropped as their labels are all equal" in report.summary()


def test_long_rows_are_truncated_dropped_or_refused():
    tokenizer = tiny_tokenizer()
    root = len(encode(PAIR, tokenizer)[0].segments[0].token_ids)
    length = encode(PAIR, tokenizer)[1].lengths_R[0]
    cut, report = encode(PAIR, tokenizer, length - 2, overflow="truncate")
    assert [len(s.token_ids) for s in cut.segments[1:]] == [length - 2 - root] * 2
    assert report.truncated == 1
    other = {"prompt": [USER], "chosen": [{**GOOD, "content": "5"}], "rejected": [{**GOOD, "content": "6"}]}
    trees, report = encode_preference_rows([PAIR, other], tokenizer, length - 1, "drop")
    assert (len(trees), report.dropped) == (1, 1)
    with pytest.raises(UserError, match=f"row 2: a branch has {length} tokens, more than max_length {length - 1}"):
        encode_preference_rows([other, PAIR], tokenizer, length - 1, "error")
    trees, report = encode_preference_rows([PAIR, other], tokenizer, root + 3, "truncate")
    assert (len(trees), report.identical) == (1, 1)  # both begin with "2 + 3"
    with pytest.raises(UserError, match=r"no row is left.* 1 dropped as longer"):
        encode(PAIR, tokenizer, root - 1, overflow="truncate")
    with pytest.raises(UserError, match="truncate would cut off the end token"):
        encode(PAIR, tokenizer, overflow="truncate", end_token="<|im_end|>")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "needs the columns `chosen` and `rejected`"),
        ({**PAIR, "margin": "large"}, "`margin` must be a number, got 'large'"),
        ({**PAIR, "margin": float("nan")}, "`margin` must be a number"),
        ({**PAIR, "prompt": []}, "`prompt` must be a text or a list of messages, and not empty"),
        ({**PAIR, "chosen": [USER]}, "no assistant message"),
        ({**PAIR, "prompt": "text"}, "prompt and completion must both be text or both be lists"),
        ({"prompt": "a", "completions": ["b"], "labels": [1]}, "list of two or more"),
        ({"prompt": "a", "completions": ["b", "c"], "labels": [1]}, "a label for each of the 2 completions"),
        ({"prompt": "a", "completions": ["b", "c"], "labels": [1, "x"]}, "a label must be a number, got 'x'"),
        ({"chosen": [USER, GOOD], "rejected": "text"}, "messages must be a non-empty list"),
    ],
)
def test_malformed_rows_are_named_with_their_number(row, message):
    with pytest.raises(UserError, match="row 2: ") as caught:
        encode_preference_rows([PAIR, row], tiny_tokenizer(), 512)
    assert message in str(caught.value)


def test_a_branch_without_the_end_token_is_refused_by_row():
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="row 1: the last turn does not end with"):
        encode(PAIR, tokenizer, end_token="<|endoftext|>")
    with pytest.raises(UserError, match=r"end_token: 'So be it' is .* tokens"):
        encode(PAIR, tokenizer, end_token="So be it")
    quoted = {**PAIR, "chosen": [{**GOOD, "content": "write <|endoftext|> here"}]}
    with pytest.raises(UserError, match="does not end with"):
        encode(quoted, tokenizer, end_token="<|endoftext|>")

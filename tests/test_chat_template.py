import pytest

from alignment.chat.render import Renderer, TemplateProblem
from alignment.chat.template import CHATML, ensure_chat_template, stop_token_ids
from tests.chat_templates import LLAMA3_LIKE, PLAIN_TEXT
from tests.test_chat_masks import tokenizer_with
from tests.tiny import CONFIGS, tiny_model, tiny_tokenizer


def test_a_tokenizer_keeps_its_own_template():
    tokenizer = tokenizer_with(LLAMA3_LIKE)
    assert ensure_chat_template(tokenizer) == []
    assert tokenizer.chat_template == LLAMA3_LIKE and tokenizer.eos_token == "<|eot_id|>"


def test_a_tokenizer_without_a_template_gets_chatml_and_stops_at_the_end_of_a_turn():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, "<|endoftext|>"
    size = len(tokenizer)
    assert ensure_chat_template(tokenizer) == []
    assert tokenizer.chat_template == CHATML and tokenizer.eos_token == "<|im_end|>" and len(tokenizer) == size


def test_missing_turn_tokens_are_added_and_named():
    from tests.test_chat_masks import sentencepiece_like_tokenizer

    tokenizer = sentencepiece_like_tokenizer()
    size = len(tokenizer)
    assert ensure_chat_template(tokenizer) == ["<|im_start|>", "<|im_end|>"]
    assert len(tokenizer) == size + 2
    assert tokenizer("<|im_end|>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]


def test_generation_stops_at_the_turn_end_of_the_template_and_at_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    end, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    assert stop_token_ids(tokenizer) == (eos, end)
    assert stop_token_ids(tokenizer_with(PLAIN_TEXT)) == (end,)


def test_chatml_renders_as_qwens_format():
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    text = tiny_tokenizer().apply_chat_template(messages, tokenize=False)
    assert (
        text == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )


def test_chatml_shows_tools_with_and_without_a_system_message():
    tool = {"type": "function", "function": {"name": "calculator", "parameters": {}}}
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        messages = [*system, {"role": "user", "content": "u"}]
        text = str(tiny_tokenizer().apply_chat_template(messages, tools=[tool], tokenize=False))
        assert text.count("<|im_start|>system") == 1 and '"name": "calculator"' in text
        assert ("Be brief." in text) == bool(system)


@pytest.mark.parametrize("arch", CONFIGS)
def test_tiny_models_are_reproducible_and_take_overrides(arch):
    a, b = tiny_model(arch), tiny_model(arch, num_hidden_layers=1)
    assert all((p == q).all() for p, q in zip(a.parameters(), tiny_model(arch).parameters(), strict=True))
    assert len(b.model.layers) == 1 and a.config is not b.config and a.dtype.itemsize == 4


def test_tools_that_are_no_schemas_are_a_problem_of_the_row():
    render = Renderer(tiny_tokenizer(), {"tools": [0.5]})
    with pytest.raises(TemplateProblem, match="cannot render these messages: Tools should"):
        render([{"role": "user", "content": "2 + 3?"}])

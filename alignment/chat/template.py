"""The ChatML template, and choosing the template that a tokenizer talks with."""

from __future__ import annotations

from transformers import AddedToken, PreTrainedTokenizerBase

from alignment.chat.render import Renderer, text_after_turn

START_TOKEN, END_TOKEN = "<|im_start|>", "<|im_end|>"
NO_TEMPLATE = (
    "the tokenizer has no chat template, so messages have no tokens: save the one that the model was trained with "
    "beside it (chat_template.jinja), or give plain texts"
)

# One `{% generation %}` block per assistant turn holds exactly what the model itself writes: everything behind the
# header up to and including the end-of-turn token. In non-thinking mode the empty block is part of the header.
CHATML = """\
{%- set no_thinking = enable_thinking is defined and enable_thinking is false %}
{%- set empty_block = '<think>\\n\\n</think>\\n\\n' if no_thinking else '' %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nCall a function by writing a JSON object with its name and arguments ' }}
{{- 'inside <tool_call></tool_call> tags.\\nThe functions, one JSON schema per line:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if tools and loop.first and message.role == 'system' %}
{%- elif message.role == 'assistant' %}
{%- set content = message.content or '' %}
{%- set thinks = message.reasoning_content or '</think>' in content %}
{{- '<|im_start|>assistant\\n' + ('' if thinks else empty_block) }}
{%- generation %}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{%- if content.split('</think>')[-1].strip() or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": ' }}{{- function.name | tojson }}{{- ', "arguments": ' }}
{%- if function.arguments is string %}{{- function.arguments }}{%- else %}{{- function.arguments | tojson }}{%- endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + empty_block }}{%- endif %}
"""


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Keep the tokenizer's own chat template; give one without any ChatML, with `<|im_end|>` as its EOS token.

    Returns the tokens added to the vocabulary: when there are any, the model's embeddings must be resized.
    """
    if tokenizer.chat_template is not None:
        return []
    vocabulary = tokenizer.get_vocab()
    added = [token for token in (START_TOKEN, END_TOKEN) if token not in vocabulary]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = END_TOKEN  # generation must stop where a turn ends
    return added


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that can end a turn: EOS and every special token of the vocabulary."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special if tokenizer.eos_token_id is None else special | {tokenizer.eos_token_id})


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Where generation has to stop: EOS and the token with which the chat template ends an assistant turn."""
    found = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        ids = tokenizer(text_after_turn(Renderer(tokenizer)), add_special_tokens=False).input_ids
        found += [i for i in ids if i in end_token_ids(tokenizer)][:1]
    return tuple(dict.fromkeys(found))

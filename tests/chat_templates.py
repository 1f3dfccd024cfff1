"""Chat templates with the behaviour of well-known ones, and Qwen3's own, for the tests of masks and rows."""

import importlib.resources

QWEN3 = (importlib.resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()

# As Qwen3's: thinking is shown only behind the last user question, the last turn always has a block, and
# enable_thinking=False prompts with an empty one.
QWEN3_LIKE = """\
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last_user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set thinking = m.reasoning_content or '' %}
{%- set answer = m.content %}
{%- if '</think>' in answer %}
{%- set thinking = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last_user and (loop.last or thinking) %}
{{- '<think>\\n' + thinking + '\\n</think>\\n\\n' }}
{%- endif %}
{{- answer }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# As Llama-3's: header ids, two new lines, trimmed content, no new line behind the end of a turn, no tools.
LLAMA3_LIKE = """\
{%- for m in messages %}
{%- if loop.first %}{{- bos_token }}{%- endif %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

# No end-of-turn token, and a header that ends in a space, which BPE likes to join with the next word.
PLAIN_TEXT = """\
{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}
"""

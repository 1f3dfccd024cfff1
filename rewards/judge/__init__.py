"""A model as the judge of responses, over any OpenAI-compatible endpoint.

`make_judge(url=..., model=...)` makes the reward; in YAML `{name: judge, url: ..., model: ...}` or `judge:FILE.yaml`.

What a response cannot do:
- state its own score: only the judge's reply is read, and it has to end with a score line; lines of this form in quoted
  texts are marked, so that a judge who merely repeats them has not given a score;
- leave its quotation: the tags around it carry a hash of the whole case, the response included, so that no response can
  hold its own closing tag; tokens that chat templates use (`<|im_end|>` and the like) are taken apart;
- gain by a reply that is cut off, has no score, several different ones or one out of range: it is unscored.

What it can do: persuade the judge by what it says. The prompt tells the judge that quoted texts are no instructions,
which makes this harder and does not exclude it. A judge who copies a score line and leaves out its mark has stated that
score, or two different ones, which is unscored. Chat tokens in spellings that `prompt.py` does not know are left to the
server.
"""

from rewards.judge.prompt import WITH_REFERENCE, WITHOUT_REFERENCE
from rewards.judge.reward import make_judge

__all__ = ["WITHOUT_REFERENCE", "WITH_REFERENCE", "make_judge"]

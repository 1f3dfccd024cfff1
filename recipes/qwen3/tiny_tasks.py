"""Rows of 28 small tasks, for the tiny run of the four stages: questions, answers, and what their rewards read.

Every task is a function of a random generator that makes one `Item`. The tasks are those of `tiny_rewards.yaml`, simple
enough for a model of a million parameters; the arithmetic is the quickstart's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.quickstart.task import make_problems
from recipes.tools import calculator, make_search

NAMES = ("Ann", "Ben", "Mia", "Tom", "Eva", "Sam")
COLOURS = ("red", "blue", "green", "white", "black", "grey")
THINGS = ("key", "hat", "pen", "cup", "map", "coin")
PLACES = ("box", "bag", "car", "shed", "desk", "barn")
WORDS = ("cat", "sun", "tree", "rain", "moon", "fish", "snow", "bird")


@dataclass(frozen=True)
class Item:
    """reply: the answer without thinking. columns: what the task's rewards read. tool, call, output: of an agent task
    the tool's schema, the arguments it is to be called with and what it then says."""

    task: str
    question: str
    reply: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    tool: Mapping[str, Any] | None = None
    call: Mapping[str, Any] | None = None
    output: str = ""

    def prompt_row(self, row_id: str, flag: str = "") -> dict[str, Any]:
        """For generation; a flag stands behind the question."""
        content = f"{self.question} {flag}" if flag else self.question
        row = {"id": row_id, "task": self.task, "domain": self.task, "prompt": [{"role": "user", "content": content}]}
        return {**row, **self.columns, "tools": [self.tool] if self.tool else []}

    def conversation(self) -> dict[str, Any]:
        """For SFT, without thinking; calls of tools and their outputs included."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.question}]
        if self.tool and self.call is not None:
            call = {"type": "function", "function": {"name": self.tool["function"]["name"], "arguments": self.call}}
            messages += [{"role": "assistant", "content": "", "tool_calls": [call]}]
            messages += [{"role": "tool", "content": self.output}]
        row = {"messages": [*messages, {"role": "assistant", "content": self.reply}]}
        return {**row, "tools": [self.tool]} if self.tool else row


def _schema(name: str, argument: str) -> dict[str, Any]:
    """Shorter than what a function's docstring would make: a tiny model has room for few tokens."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CALCULATOR, PYTHON, SEARCH = _schema("calculator", "expression"), _schema("python", "code"), _schema("search", "query")
Maker = Callable[[random.Random], Item]
TASKS: dict[str, Maker] = {}


def _task(maker: Callable[[random.Random], tuple[Any, ...]]) -> Maker:
    def make(rng: random.Random) -> Item:
        return Item(maker.__name__, *maker(rng))

    TASKS[maker.__name__] = make
    return make


def _sum(rng: random.Random) -> tuple[int, int, int]:
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    return a, b, a + b


def _fact(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(NAMES), rng.choice(THINGS), f"{rng.choice(COLOURS)} {rng.choice(PLACES)}"


def _different(rng: random.Random, values: Sequence[Any], n: int) -> list[Any]:
    return rng.sample(list(values), n)


# --- reasoning: rules -------------------------------------------------------------------------------------------------


@_task
def sums(rng):
    a, b, total = _sum(rng)
    return f"Compute {a}+{b}.", f"The answer is \\boxed{{{total}}}.", {"answer": str(total)}


@_task
def money(rng):
    a, b, total = _sum(rng)
    name = rng.choice(NAMES)
    text = f"{name} has {a} coins and gets {b}. How many coins has {name}?"
    return text, f"The answer is \\boxed{{{total}}}.", {"answer": str(total)}


@_task
def code(rng):
    n = rng.randint(1, 9)
    cases = [{"args": [x], "expected": x + n} for x in (0, 3, 10)]
    reply = f"```python\ndef f(a):\n    return a + {n}\n```"
    return f"Write a Python function f(a) that adds {n}.", reply, {"entry_point": "f", "cases": cases}


@_task
def choice(rng):
    values = _different(rng, range(10, 99), 3)
    letter = "ABC"[values.index(max(values))]
    options = " ".join(f"{name}) {value}" for name, value in zip("ABC", values, strict=True))
    return f"Which is the largest? {options}", f"The answer is ({letter}).", {"answer": letter}


@_task
def puzzle(rng):
    a, b, c = _different(rng, NAMES, 3)
    text = f"{a} is taller than {b}. {b} is taller than {c}. Who is tallest? Answer as JSON."
    return text, json.dumps({"tallest": a}), {"answer": {"tallest": a}, "mode": "no_think"}


# --- instructions and format: rules -----------------------------------------------------------------------------------


@_task
def no_comma(rng):
    a, b = _different(rng, WORDS, 2)
    columns = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    return f"Name {a} and {b} without a comma.", f"{a} and {b}", columns


@_task
def end_with(rng):
    word, phrase = rng.choice(WORDS), rng.choice(("That is all.", "Good day."))
    columns = {"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": phrase}]}
    return f"Say {word} and end with: {phrase}", f"{word}. {phrase}", columns


@_task
def bullets(rng):
    words = _different(rng, WORDS, 2)
    columns = {"instruction_id_list": ["detectable_format:number_bullet_lists"], "kwargs": [{"num_bullets": 2}]}
    return f"List {' and '.join(words)} as 2 bullets.", "\n".join(f"* {word}" for word in words), columns


@_task
def two_instructions(rng):
    a, b = _different(rng, WORDS, 2)
    ids = ["keywords:existence", "startend:quotation"]
    columns = {"instruction_id_list": ids, "kwargs": [{"keywords": [a]}, {}], "answer": f'"{a} and {b}"'}
    return f"Put {a} and {b} in quotation marks.", f'"{a} and {b}"', columns


def _in_mode(rng: random.Random, flag: str, mode: str):
    a, b, total = _sum(rng)
    return f"Compute {a}+{b}. {flag}", f"The answer is \\boxed{{{total}}}.", {"answer": str(total), "mode": mode}


@_task
def format_thinking(rng):
    return _in_mode(rng, "/think", "thinking")


@_task
def format_no_think(rng):
    return _in_mode(rng, "/no_think", "no_think")


@_task
def answer_tags(rng):
    a, b, total = _sum(rng)
    columns = {"answer": str(total), "mode": "no_think", "answer_tags": True}
    return f"Compute {a}+{b}. Answer in tags.", f"<answer>\\boxed{{{total}}}</answer>", columns


@_task
def in_english(rng):
    word = rng.choice(WORDS)
    columns = {"mode": "no_think", "answer_language": "en"}
    return f"Say in English that you like the {word}.", f"I like the {word}.", columns


@_task
def extraction(rng):
    name, age = rng.choice(NAMES), rng.randint(5, 60)
    value = {"name": name, "age": age}
    return f"Extract as JSON: {name} is {age}.", json.dumps(value), {"answer": value}


@_task
def table(rng):
    rows = [{"name": name, "n": rng.randint(1, 9)} for name in _different(rng, NAMES, 2)]
    text = " ".join(f"{row['name']} {row['n']};" for row in rows)
    return f"As JSON rows: {text}", json.dumps(rows), {"answer": rows}


@_task
def spelling(rng):
    word = rng.choice(WORDS)
    return f"Spell {word} backwards.", word[::-1], {"answer": word[::-1]}


@_task
def sorting(rng):
    values = _different(rng, range(1, 10), 3)
    answer = " ".join(map(str, sorted(values)))
    return f"Sort {' '.join(map(str, values))}.", answer, {"answer": answer}


@_task
def translation(rng):
    names = {"red": "rot", "blue": "blau", "green": "grün", "white": "weiß", "black": "schwarz", "grey": "grau"}
    a, b = _different(rng, list(names), 2)
    answer = f"{names[a]} und {names[b]}"
    return f"Into German: {a} and {b}", answer, {"answer": answer}


# --- a judge with a reference -----------------------------------------------------------------------------------------


@_task
def question_answering(rng):
    name, thing, place = _fact(rng)
    answer = f"The {thing} is in the {place}."
    return f"{name} put the {thing} into the {place}. Where is the {thing}?", answer, {"answer": answer}


@_task
def summary(rng):
    name, thing, place = _fact(rng)
    text = f"{name} had a {thing}. It was a good {thing}. In the end {name} put it into the {place}."
    answer = f"{name} put a {thing} into the {place}."
    return f"Summarise: {text}", answer, {"answer": answer}


# --- retrieval and agents ---------------------------------------------------------------------------------------------


def _documents(rng: random.Random) -> tuple[str, str, str, dict[str, str]]:
    """A thing, where it is, the document that says so, and all documents by id."""
    things, places = _different(rng, THINGS, 2), _different(rng, PLACES, 2)
    texts = {f"d{i + 1}": f"The {thing} is in the {place}." for i, (thing, place) in enumerate(zip(things, places))}
    chosen = rng.randrange(2)
    return things[chosen], places[chosen], f"d{chosen + 1}", texts


@_task
def retrieval(rng):
    thing, place, source, texts = _documents(rng)
    shown = " ".join(f"[{name}] {text}" for name, text in texts.items())
    columns = {"passages": texts, "required": [source], "allowed": [source], "answer": place}
    return f"{shown} Where is the {thing}? Cite.", f"In the {place} [{source}].", columns


@_task
def quotes(rng):
    thing, place, source, texts = _documents(rng)
    shown = " ".join(f"[{name}] {text}" for name, text in texts.items())
    columns = {"passages": texts, "required": [source], "allowed": [source], "answer": place}
    return f"{shown} Where is the {thing}? Quote.", f'"The {thing} is in the {place}." [{source}]', columns


@_task
def tool_call(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    call = {"name": "add", "arguments": {"a": a, "b": b}}
    reply = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    return f"Call add with a {a} and b {b}.", reply, {"tool_calls": [call]}


@_task
def agent_calculator(rng):
    expression = f"{rng.randint(11, 99)}*{rng.randint(11, 99)}"
    result = calculator(expression)
    columns = {"answer": result}
    return f"Compute {expression}.", f"The answer is \\boxed{{{result}}}.", columns, CALCULATOR, {
        "expression": expression
    }, result  # fmt: skip


@_task
def agent_python(rng):
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    result = str(a % b + b)
    columns = {"answer": result}
    call = {"code": f"print({a}%{b}+{b})"}
    return f"Compute {a}%{b}+{b}.", f"The answer is \\boxed{{{result}}}.", columns, PYTHON, call, f"{result}\n"


@_task
def agent_search(rng):
    thing, place, source, texts = _documents(rng)
    columns = {"passages": texts, "required": [source], "allowed": [source], "answer": place}
    output = make_search(texts)(thing)
    return f"Where is the {thing}? Cite.", f"In the {place} [{source}].", columns, SEARCH, {"query": thing}, output


# --- a reward model ---------------------------------------------------------------------------------------------------


@_task
def chat(rng):
    name, word = rng.choice(NAMES), rng.choice(WORDS)
    return f"I am {name}. Tell me about the {word}.", f"Hello {name}! The {word} is nice. I like it."


@_task
def story(rng):
    name, word = rng.choice(NAMES), rng.choice(WORDS)
    text = f"{name} saw a {word}. It was a big {word}. {name} was happy."
    return f"A story of {name} and the {word}.", text


def make_items(n: int, seed: int, tasks: Sequence[str] = ()) -> list[Item]:
    """n items, the tasks in turn, in a random order."""
    rng = random.Random(f"items/{seed}")
    names = list(tasks or TASKS)
    items = [TASKS[names[i % len(names)]](rng) for i in range(n)]
    rng.shuffle(items)
    return items


def preference_pairs(n: int, seed: int) -> list[dict[str, Any]]:
    """For the reward model of chat and stories: a reply that keeps to its question against one that is rude, cut short,
    or about something else."""
    rng = random.Random(f"pairs/{seed}")
    rows = []
    for item in make_items(n, seed, ("chat", "story")):
        other = TASKS[item.task](rng)
        worse = rng.choice([f"{item.reply.split('.')[0]}.", "No.", other.reply, f"{item.reply} {item.reply}"])
        if worse == item.reply:
            worse = "No."
        prompt = [{"role": "user", "content": item.question}]
        turns = {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("chosen", item.reply), ("rejected", worse))
        }
        rows.append({"prompt": prompt, **turns})
    return rows


def problems(n: int, seed: int, split: str = "train", exclude: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The quickstart's arithmetic of levels 1 to 3."""
    return make_problems(n, seed, levels=(1, 2, 3), split=split, exclude=exclude)  # type: ignore[arg-type]

"""The tools that recipes offer: what they compute, the schemas they show, rows that cannot be served."""

import json

import pytest

from alignment.errors import UserError
from alignment.types import Prompt
from recipes.tools import Tools, calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 12", "144"), ("48 / 2", "24"), ("1 / 3", "0.333333333333"), ("2^10", "1024"), ("2 ** -1", "0.5"),
        ("-(3 + 4) * 2", "-14"), ("7 // 2 + 7 % 2", "4"), ("sqrt(16) + max(1, 2)", "6"), ("round(2 * pi, 3)", "6.283"),
    ],
)  # fmt: skip
def test_the_calculator_calculates(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression", ["9 ** 9 ** 9", "__import__('os')", "open('x')", "x", "1 +", "'a' * 9", "[1]", ""]
)
def test_the_calculator_does_nothing_else(expression):
    with pytest.raises((ValueError, SyntaxError)):
        calculator(expression)


def lookup(word: str, times: int = 1) -> str:
    """
    Looks a word up.

    Args:
        word: The word.
        times: How often.
    """
    return word * times


def without_hints(word):
    """Has no schema."""


def test_tools_are_offered_with_their_schemas():
    tools = Tools(["calculator", "search", f"{__name__}:lookup"])
    plain, documents, own = tools.offer(
        [{"question": "?"}, {"question": "?", "passages": ["a"]}, {"question": "?", "tools": []}]
    )
    names = [[schema["function"]["name"] for schema in row["tools"]] for row in (plain, documents, own)]
    assert names == [["calculator", "lookup"], ["calculator", "lookup", "search"], []]
    properties = plain["tools"][1]["function"]["parameters"]["properties"]
    assert properties == {"word": {"type": "string", "description": "The word."},
                          "times": {"type": "integer", "description": "How often."}}  # fmt: skip
    prompt_of = {name: Prompt("p", [], [1], row) for name, row in (("plain", plain), ("own", own), ("docs", documents))}
    assert list(tools.of(prompt_of["docs"])) == ["calculator", "lookup", "search"] and tools.of(prompt_of["own"]) == {}
    assert tools.of(prompt_of["plain"])["lookup"]({"word": "ab", "times": 2}) == "abab"
    with pytest.raises(TypeError, match="missing a required argument: 'word'"):
        tools.of(prompt_of["plain"])["lookup"]({"wrd": "ab"})
    for names, message in (
        (["calculater"], "there is no tool 'calculater'; there are calculator, python, search"),
        ([f"{__name__}:nothing"], "has no 'nothing'"),
        ([f"{__name__}:without_hints"], "without_hints has no schema"),
    ):
        with pytest.raises(UserError, match=message):
            Tools(names)
    with pytest.raises(UserError, match="row 1: `search` is its only tool"):
        Tools(["search"]).offer([{"question": "?"}])


def test_rows_whose_tools_cannot_be_executed_are_counted_before_a_run(caplog):
    schema = {"type": "function", "function": {"name": "telephone", "parameters": {}}}
    rows = [{"question": "?"}, {"question": "?", "tools": [schema]}, {"question": "?", "tools": json.dumps([schema])}]
    assert Tools(["calculator"]).offer(rows)[1:] == rows[1:]
    assert "2 of 3 rows offer tools that are not executed here (telephone)" in caplog.text
    for row, message in (
        ({"prompt": "2 + 3 ="}, "row 2: `prompt` is a text, and tools need messages"),
        ({"question": "?", "tools": [{"type": "function"}]}, "row 2: column tools needs schemas of functions"),
        ({"question": "?", "tools": "{"}, "row 2: column tools is not valid JSON"),
    ):
        with pytest.raises(UserError, match=message):
            Tools(["calculator"]).offer([{"question": "?"}, row])
    assert Tools(["calculator"]).offer([{"prompt": "2 + 3 =", "tools": []}])


def test_search_finds_the_passages_that_hold_the_words():
    passages = [
        {"id": "eiffel", "text": "The Eiffel Tower in Paris is 330 metres high."},
        {"id": "berlin", "text": "Berlin is a city with a television tower."},
        {"id": "zh", "text": "北京是中国的首都。"},
    ]
    row = Tools(["search"]).offer([{"question": "?", "passages": passages}])[0]
    search = Tools(["search"]).of(Prompt("p", [], [1], row))["search"]
    assert search({"query": "how high is the Eiffel tower?"}).startswith("[eiffel] The Eiffel Tower")
    assert search({"query": "首都"}).startswith("[zh]") and search({"query": "zebra"}) == "(no passage fits)"


def test_python_runs_in_the_sandbox():
    row = Tools(["python"]).offer([{"question": "?"}])[0]
    python = Tools(["python"]).of(Prompt("p", [], [1], row))["python"]
    assert python({"code": "print(sum(range(10)))"}) == "45\n"
    assert python({"code": "x = 1"}) == "(nothing was printed)"
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as failure:
        python({"code": "print('before')\n1 / 0"})
    assert "before" in str(failure.value) and "sandbox" not in str(failure.value)
    with pytest.raises(RuntimeError, match="Error"):
        python({"code": "open('/etc/passwd').read(); import socket; socket.create_connection(('localhost', 1))"})

"""Answers that quote and cite given passages: what passes, and one rule broken at a time."""

import doctest

import pytest

import verifiers.citation
from verifiers import verify

PASSAGES = [
    "The tower is 330 m tall. It was built in 1889 for the World's Fair, and “nobody liked it” at first.",
    "Its engineer, Gustave Eiffel, kept a small apartment at the top; he met Edison there.",
    "埃菲尔铁塔位于巴黎战神广场，高三百三十米。",
]
ROW = {"passages": PASSAGES}


def check(response, status="pass", detail="", **columns):
    verdict = verify("citation", response, {**ROW, **columns})
    assert verdict.status == status and detail in verdict.detail, (response, verdict)


def test_docstring_examples():
    assert doctest.testmod(verifiers.citation).failed == 0


@pytest.mark.parametrize(
    "answer",
    [
        "It is tall [1].",
        "It is tall [1][2], as all say [1, 3] [1-3].",
        "It is tall[^1].",
        "“It was built in 1889 for the World's Fair” [1].",
        "“It was built in 1889 for the World’s Fair,” the report says [1].",
        "The report [1] says \"It was built in 1889\" and «The tower is 330 m tall.».",
        "[1] says “It was built in 1889”, and [2] says “he met Edison there”.",
        "“and 'nobody liked it' at first” [1]",
        "“It was  built\nin 1889” [1]",
        "“The tower is 330 m tall … for the World's Fair” [1]",
        "“The tower is 330 m tall [...] for the World's Fair” [1]",
        "As written:\n> It was built in 1889\n> for the World's Fair\n[1]",
        "As [1] has it:\n> It was built in 1889 [1]",
        "The “iron lady” is tall [1].",
        "“埃菲尔铁塔位于巴黎战神广场” [3]",
        "“战神广场” [3]",
        "它位于“巴黎战神广场”【3】。",
        "“It was built in 1889” [1]; see also [2].",
        "<think>[9] “no such quotation anywhere”</think>It is tall [1].",
        "Tall [1]:\n```python\nx[7] = 'y'\n```\nand $x \\in [0, 9]$ and `a[5]`.",
        "Tall [sic], she said [1].",
    ],
)  # fmt: skip
def test_sound_answers_pass(answer):
    check(answer)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ("It is tall.", "0 passages cited"),
        ("It is tall [4].", "[4] cites no given passage"),
        ("It is tall [1, 0].", "[1, 0] cites no given passage"),
        ("It is tall 【4】.", "【4】 cites no"),
        ("It is tall [2-5].", "[2-5] cites no"),
        ("“It was built in 1890” [1].", "'It was built in 1890' does not stand in passage 1"),
        ("“it was built in 1889” [1].", "does not stand"),
        ("“It was built in 1889” [2].", "does not stand in passage 2"),
        ("“It was built in 188” [1].", "does not stand"),
        ("“red” [1].", "does not stand in passage 1"),
        ("It is tall [1]. “Everybody loved the new tower”, wrote Zola.", "does not stand in passage 1"),
        ("It is tall [1].\n“Everybody loved the new tower”, wrote Zola.", "does not stand in any passage"),
        ("“for the World's Fair … The tower is 330 m tall” [1]", "does not stand"),
        ("“The … is … built … in … and … at” [1]", "does not stand"),
        ("“It was built in 1889” [1] and “he met Edison there” [1].", "'he met Edison there' does not"),
        ("[1]\n> It was built in 1899", "does not stand in passage 1"),
        ("“埃菲尔铁塔位于巴黎香榭丽舍” [3]", "does not stand in passage 3"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_named(answer, detail):
    check(answer, "fail", detail)


def test_ids_of_any_form():
    passages = [{"id": "doc-7", "text": PASSAGES[0], "title": "T"}, {"id": "doc-8", "text": PASSAGES[1]}]
    check("Tall [doc-7].", passages=passages)
    check("Tall [doc-9].", "fail", "[doc-9] cites no given passage", passages=passages)
    check("Tall [1].", "fail", "[1] cites no given passage", passages=passages)
    check("Tall [see below] [doc-7].", passages=passages)
    check("Tall [a].", passages={"a": PASSAGES[0]})
    check("Tall [12].", passages=[{"id": 12, "text": "x"}])


def test_what_must_and_what_may_be_cited():
    check("Tall [1].", min_citations=2, status="fail", detail="1 passages cited, at least 2")
    check("Tall [1][1][1].", min_citations=2, status="fail")
    check("Tall [1][2].", min_citations=2)
    check("No passage says so.", min_citations=0)
    check("Tall [1].", required=[1, 2], status="fail", detail="passage 2 has to be cited")
    check("Tall [2] [1].", required=[1, "2"])
    check("Tall [1][2][3].", allowed=[1, 2], status="fail", detail="passage 3 may not be cited")


def test_quotations_that_count_are_long_true_and_different():
    two = "“It was built in 1889” [1] and “he met Edison there” [2]."
    check(two, min_quotes=2)
    check("“It was built in 1889” [1], “It was built in 1889.” [1]", "fail", "1 quotations", min_quotes=2)
    check("“The tower” is tall [1].", "fail", "0 quotations", min_quotes=1)
    check("You ask “how tall is the tower?” [1]".replace(" [1]", "\nTall [1]."), "fail", min_quotes=1,
          question="how tall is the tower?")  # fmt: skip


def test_the_question_may_be_quoted_without_a_citation():
    row = {"question": "Say how tall is the tower, please"}
    check("You ask “how tall is the tower”.\nTall [1].", **row)
    check("You ask “how tall is the tower” [1].", "fail", **row)


def test_the_expected_answer_stands_as_whole_words():
    check("It dates from 1889 [1].", answer="1889")
    check("It dates from the Year 1889 [1].", answer=["1890", "the year 1889."])
    check("It dates from 18890 [1].", "fail", "does not say '1889'", answer="1889")
    check("It is tall [1].", "fail", answer="1")
    check("答案是巴黎。[3]", answer="巴黎")


def test_brackets_that_a_passage_holds_can_be_quoted():
    passages = ["He was born in Bonn [5] and died in Wien."]
    check("“was born in Bonn [5] and died” [1]", passages=passages)
    check("“was born in Bonn [5] and died” [1], see [5]", "fail", "[5] cites no", passages=passages)


def test_no_answer_is_unparsed_and_a_broken_row_unscored():
    check("<think>[1]", "unparsed")
    check(" ", "unparsed")
    for passages in ([], "text", [{"text": "x"}], [{"id": 1, "text": "x"}, {"id": "1", "text": "y"}], [1]):
        check("[1]", "error", "'passages'", passages=passages)
    check("[1]", "error", "'required' names '9'", required=[9])
    assert "'passages'" in verify("citation", "x", {}).detail


def test_degenerate_answers_are_read_to_their_end():
    """100,000 characters; a scan that is not linear would take minutes."""
    for part in ("“a” ", "[", "> a\n", "“", "[9]"):
        check(part * (100_000 // len(part)), "fail")
    for part in ("[1]", '"a [1] ', "“tower” [1] "):
        check(part * (100_000 // len(part)))

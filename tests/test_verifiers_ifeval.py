"""The ifeval verifier: each constraint kept and broken, rows at fault, strict and loose, hostile text."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from verifiers import verify
from verifiers.ifeval import accuracies, check_instructions, list_constraints, register_constraint
from verifiers.ifeval import constraints as constraints_module
from verifiers.ifeval import language as language_module
from verifiers.ifeval.sentences import count_sentences

PUBLISHED = """
    change_case:capital_word_frequency change_case:english_capital change_case:english_lowercase
    combination:repeat_prompt combination:two_responses
    detectable_content:number_placeholders detectable_content:postscript
    detectable_format:constrained_response detectable_format:json_format detectable_format:multiple_sections
    detectable_format:number_bullet_lists detectable_format:number_highlighted_sections detectable_format:title
    keywords:existence keywords:forbidden_words keywords:frequency keywords:letter_frequency
    language:response_language
    length_constraints:nth_paragraph_first_word length_constraints:number_paragraphs
    length_constraints:number_sentences length_constraints:number_words
    punctuation:no_comma startend:end_checker startend:quotation"""


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(constraints_module, "_constraints", dict(constraints_module._constraints))


@pytest.mark.parametrize("module", ["", ".constraints", ".language", ".sentences"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"verifiers.ifeval{module}"))
    assert result.attempted > 0 and result.failed == 0


def test_the_25_published_constraints_are_registered():
    assert list_constraints() == sorted(PUBLISHED.split())


def one(instruction_id, **kwargs):
    return {"instruction_id_list": [instruction_id], "kwargs": [kwargs]}


FIRST_WORD = "length_constraints:nth_paragraph_first_word"
HIGHLIGHTED = "detectable_format:number_highlighted_sections"
ENGLISH = "The weather was lovely all day and we walked along the river."
GERMAN = "Das Wetter war den ganzen Tag schön und wir gingen am Fluss entlang."
FIRST = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Summary"}
CAPITAL = {"capital_frequency": 2, "capital_relation": "at least"}
# (family of the id, rest of the id, kwargs, responses that keep the constraint, responses that break it)
CASES = [
    ("keywords:existence", {"keywords": ["mom", "C++"]}, ["Moms like c++"], ["Moms like C", "mom"]),
    ("keywords:existence", {"keywords": [" talented "]}, ["talented!"], ["talent"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "at least"}, ["War and war"], ["war"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 1, "relation": "less than"}, ["peace"], ["war", "Warsaw"]),
    ("keywords:frequency", {"keyword": "a.b", "frequency": 1, "relation": "at least"}, ["a.b"], ["axb"]),
    ("keywords:forbidden_words", {"forbidden_words": ["can", "no"]}, ["cannot know"], ["I CAN", "say no."]),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, ["C and D++"], ["I use C++.", "c++"]),
    ("keywords:letter_frequency", {"letter": "L", "let_frequency": 3, "let_relation": "at least"}, ["Lull"], ["ill"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, ["#a #b"], ["#a"]),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 1, "let_relation": "less than"}, ["a"], ["E"]),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, "12345", "!?"]),
    ("language:response_language", {"language": "ko"}, ["안녕하세요. 오늘 날씨가 좋네요."], [ENGLISH]),
    ("language:response_language", {"language": "zh"}, ["今天天气很好，我们去公园散步吧。"], [ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two.", "why? because"],
        ["Dr. No.", "? ! ? !"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One."], ["One. Two."]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["two words"], ["it is not"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a don't"], ["* * * a b"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***a *** b***"], ["a", "a******b"]),
    (FIRST_WORD, FIRST, ["x\n\nsummary, a", 'x\n\n\n\n"Summary: a'], ["x\n\nA"]),
    (FIRST_WORD, FIRST, ["x\n\nSUMMARY"], ["x\n\nSummary\n\ny", "Summary", "x\nSummary"]),
    (FIRST_WORD, {**FIRST, "first_word": "don't"}, ["x\n\nDon't!"], ["x\n\nDon go"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]"], ["[a] []", "[a] [ ]", "[[a]]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["bye\np. s. hi"], ["PS hi", "p.s"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S hi", "P. P. S. hi"], ["P.S. hi"]),
    ("detectable_content:postscript", {"postscript_marker": "Note (end):"}, ["a note (end): b"], ["note end"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n  - b", "- a\n---\n- b"], ["* a", "* a\n*b*"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, ["**a**\n* *b* c", "*a"], ["* * *", "*", "-- Ann"]),
    ("detectable_format:constrained_response", {}, ["Well: My answer is no."], ["my answer is no."]),
    (HIGHLIGHTED, {"num_highlights": 2}, ["*a* **b c**"], ["***a***", "2 * 3 * 4 * 5"]),
    (HIGHLIGHTED, {"num_highlights": 1}, ["* *a*"], ["* a\n* b", "****", "** **"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\n**Section 2** b"],
        ["Section 1", "SECTION 1 SECTION 2", "Section 1\nSections 2", "Section one\nSection two"],
    ),
    ("detectable_format:json_format", {}, ['{"a": [1]}', "```\n[]\n```"], ["{a: 1}", "NaN", "Here: {}", "[" * 99999]),
    ("detectable_format:json_format", {}, ['```JSON\n{"a": 1}\n```', '```json {"a": 1}'], ["```python\n1\n```"]),
    ("detectable_format:title", {}, ["<<a poem>>\nx", "x << y>>"], ["<<>>", "<< >>", "<<a\nb>>", "<a>", "<<>> <<>>"]),
    ("combination:two_responses", {}, ["a\n******\nb", "******a******b******"], ["a******a", "a", "a******"]),
    ("combination:two_responses", {}, ["a ****** a b"], ["a******b******c", "a************b"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name a dog. "}, ["name a dog.\nRex"], ["Sure! Name a dog."]),
    ("startend:end_checker", {"end_phrase": "Peace!"}, ["and peace!", '"Peace!"', '"Peace! "'], ["Peace! Bye"]),
    ("startend:end_checker", {"end_phrase": 'say "hi"'}, ['then say "hi"'], ["then say hi"]),
    ("startend:quotation", {}, ['"a" or "b"', ' "a"\n'], ['"a', 'a"', '"', '""', "'a'"]),
    ("change_case:capital_word_frequency", CAPITAL, ["I'm at NASA's", "A-B and U.S. law"], ["DON'T", "CANNOT"]),
    ("change_case:capital_word_frequency", CAPITAL, ["*NO* **NO**", "IN 3D"], ["O'Brien's A-b R&D", "ÉTÉ Été"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, GERMAN.lower(), "123"]),
    ("punctuation:no_comma", {}, ["no; comma"], ["a, b", "甲，乙", "أ، ب", "甲、乙"]),
]  # fmt: skip


@pytest.mark.parametrize(("instruction_id", "kwargs", "kept", "broken"), CASES)
def test_constraint(instruction_id, kwargs, kept, broken):
    for response in kept:
        verdict = verify("ifeval", response, one(instruction_id, **kwargs))
        assert (verdict.status, verdict.score) == ("pass", 1.0), (response, verdict)
    for response in broken:
        verdict = verify("ifeval", response, one(instruction_id, **kwargs))
        assert (verdict.status, verdict.score) == ("fail", 0.0), (response, verdict)
        assert f"1 {instruction_id} (" in verdict.detail


def test_every_published_constraint_is_tested_both_ways():
    assert {case[0] for case in CASES} == set(PUBLISHED.split())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0), ("...", 0), ("Hello", 1), ("Hello. you there", 2), ("all small. no capitals. at all.", 3),
        ("1. Wash.\n2. Cut.", 2), ("The answer is\n42.", 1), ("Ann (b. 1950) met Dr. J. K. Smith in St. Louis.", 1),
        ("We sell bolts, nuts, etc. The rest is gone.", 2), ("It is 5 p.m. now.", 1), ("It is 5 p.m. We go.", 2),
        ("See Fig. 2. No. It is no. 3.", 3), ("Well... maybe. Hm... Yes.", 3),
        ('"Go!" he said. (He left.) *Fine.* Ok', 5),
        ("Pi is 3.14 and v1.2.3 is out.", 1), ("Really?! No way!!!", 2), ("今天很好。我们走吧！", 2),
        ("यह है। वह है।", 2), ("It rained.[1] Then it stopped.[2][3]", 2), ("e.g. this, i.e. that, vs. those", 1),
        ("The U.S. Army left the U.S.", 1),
    ],
)  # fmt: skip
def test_sentences(text, sentences):
    assert count_sentences(text) == sentences


TWO = ["punctuation:no_comma", "length_constraints:number_words"]
WORDS = {"num_words": 3, "relation": "at least"}
BAD_ROWS = [
    ({"instruction_id_list": ["punctuation:no_commas"], "kwargs": [{}]}, "did you mean 'punctuation:no_comma'"),
    ({"instruction_id_list": ["x"], "kwargs": [{}]}, "unknown id 'x'"),
    ({"instruction_id_list": [None], "kwargs": [{}]}, "unknown id None"),
    ({"instruction_id_list": [], "kwargs": []}, "at least one id"),
    ({"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]}, "must be a list"),
    ({"instruction_id_list": TWO, "kwargs": [{}]}, "one entry for each of the 2 ids, got 1 entries"),
    ({"instruction_id_list": TWO, "kwargs": [{}, "{}"]}, "must be an object"),
    ({"instruction_id_list": TWO}, "'kwargs'"),
    ({"instruction_id_list": TWO, "kwargs": None}, "column 'kwargs'"),
    ({"instruction_id_list": TWO, "kwargs": [{}, {"relation": "at least"}]}, f"2 ({TWO[1]}) needs 'num_words'"),
    ({"instruction_id_list": TWO, "kwargs": [{}, {**WORDS, "num_words": None}]}, "needs 'num_words'"),
    ({"instruction_id_list": TWO, "kwargs": [{"num_word": 3}, WORDS]}, "has no parameter 'num_word'"),
    (one(TWO[1], **{**WORDS, "num_words": -1}), "'num_words' must be a whole number of at least 0, got -1"),
    (one(TWO[1], **{**WORDS, "num_words": 2.5}), "'num_words'"),
    (one(TWO[1], **{**WORDS, "num_words": float("nan")}), "'num_words'"),
    (one(TWO[1], **{**WORDS, "num_words": float("inf")}), "'num_words'"),
    (one(TWO[1], **{**WORDS, "num_words": True}), "'num_words'"),
    (one(TWO[1], **{**WORDS, "num_words": "3"}), "'num_words'"),
    (one(TWO[1], **{**WORDS, "relation": "at most"}), "'relation' must be 'at least' or 'less than', got 'at most'"),
    (one("keywords:existence", keywords="word"), "'keywords' must be a list"),
    (one("keywords:existence", keywords=[]), "'keywords'"),
    (one("keywords:existence", keywords=["a", " "]), "'keywords'"),
    (one("keywords:letter_frequency", letter="ab", let_frequency=1, let_relation="at least"), "'letter' must be a"),
    (one("language:response_language", language="klingon"), "'language' must be one of the languages"),
    (one(FIRST_WORD, num_paragraphs=2, nth_paragraph=3, first_word="a"), "'nth_paragraph'"),
    (one(FIRST_WORD, num_paragraphs=2, nth_paragraph=0, first_word="a"), "'nth_paragraph'"),
    (one(FIRST_WORD, num_paragraphs=2, nth_paragraph=1, first_word="a b"), "'first_word'"),
    (one("startend:end_checker", end_phrase=""), "'end_phrase'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "detail"), BAD_ROWS)
@pytest.mark.parametrize("name", ["ifeval", "ifeval_loose"])
def test_a_row_at_fault_is_an_error_that_names_the_key(name, row, detail):
    for response in ("One, two three.", "a\n\nb\n\nc"):
        verdict = verify(name, response, row)
        assert (verdict.score, verdict.status) == (None, "error") and detail in verdict.detail, verdict


def test_an_unknown_id_beside_broken_ones_is_still_an_error():
    row = {"instruction_id_list": ["punctuation:no_comma", "nonsense:id"], "kwargs": [{}, {}]}
    assert verify("ifeval", "a, b", row).status == "error"


def test_unused_keys_of_united_columns_may_be_there():
    unused: dict = {
        "num_words": None,
        "relation": None,
        "keywords": None,
        "letter": "",
        "num_bullets": 0,
        "forbidden_words": [],
    }
    row = {"instruction_id_list": TWO, "kwargs": [unused, {**unused, "num_words": 3.0, "relation": "at least"}]}
    assert verify("ifeval", "one two three", row).status == "pass"
    assert verify("ifeval", "one two", row).status == "fail"
    assert verify("ifeval", "none", one("punctuation:no_comma") | {"kwargs": [None]}).status == "pass"


def test_a_zero_is_taken_at_its_word():
    row = one("keywords:frequency", keyword="a", frequency=0, relation="at least")
    assert verify("ifeval", "b", row).status == "pass"
    assert verify("ifeval", "b", row | {"kwargs": [{**row["kwargs"][0], "relation": "less than"}]}).status == "fail"


def test_repeated_ids_are_kept_apart():
    row = {
        "instruction_id_list": ["length_constraints:number_words"] * 2,
        "kwargs": [{"num_words": 2, "relation": "at least"}, {"num_words": 4, "relation": "less than"}],
    }
    assert [verify("ifeval", "a " * n, row).status for n in (1, 2, 3, 4)] == ["fail", "pass", "pass", "fail"]
    assert "1 length_constraints:number_words (words: 1, at least 2 asked for)" in verify("ifeval", "a", row).detail
    assert "2 length_constraints:number_words (words: 4, less" in verify("ifeval", "a b c d", row).detail
    assert [o.strict for o in check_instructions("a b c d", row)] == [True, False]


def test_partial_credit_is_the_share_of_instructions_followed():
    row = {"instruction_id_list": [*TWO, "startend:quotation"], "kwargs": [{}, WORDS, {}]}
    plain = verify("ifeval", "one two three", row)
    assert (plain.score, plain.status) == (0.0, "fail") and plain.detail.startswith(
        "2 of 3 instructions followed; 3 st"
    )
    partial = row | {"partial_credit": True}
    assert verify("ifeval", "one two three", partial).score == pytest.approx(2 / 3)
    assert verify("ifeval", "one two three", partial).status == "pass"
    assert verify("ifeval", "one, two", partial).status == "fail"
    assert verify("ifeval", '"one two three"', partial).score == 1.0


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        ('"a"', True, True), ('Sure:\n"a"', False, True), ('"a"\nAnything else?', False, True),
        ('Sure:\n"a"\nBye', False, True), ('**"a"**', False, True), ('Sure:\n*"a"*\nBye', False, True),
        ('Sure:\n\n\n"a"\n\nBye', False, True), ('x\ny\n"a"', False, False), ("Sure:\n**\nBye", False, False),
    ],
)  # fmt: skip
def test_loose_takes_the_best_of_eight_forms(response, strict, loose):
    row = one("startend:quotation")
    assert [verify(name, response, row).passed for name in ("ifeval", "ifeval_loose")] == [strict, loose]
    assert [(o.strict, o.loose) for o in check_instructions(response, row)] == [(strict, loose)]


def test_in_loose_each_instruction_may_be_followed_by_another_form():
    row = {"instruction_id_list": ["startend:quotation", "keywords:existence"], "kwargs": [{}, {"keywords": ["sure"]}]}
    assert verify("ifeval_loose", 'Sure:\n"a"', row).status == "pass"


def test_the_answer_is_what_stands_outside_the_thinking_block():
    row = one("punctuation:no_comma")
    assert verify("ifeval", "<think>a, b</think>\n\nclean", row).status == "pass"
    assert verify("ifeval", "<think>clean</think>a, b", row).status == "fail"
    first = one(FIRST_WORD, num_paragraphs=1, nth_paragraph=1, first_word="clean")
    assert verify("ifeval", "<think>hm</think>\n\nclean", first).status == "pass"


@pytest.mark.parametrize("response", ["", "  \n", "<think>clean", "<think>clean</think> \n"])
def test_without_an_answer_nothing_is_followed(response):
    row = one("punctuation:no_comma") | {"partial_credit": True}
    for name in ("ifeval", "ifeval_loose"):
        verdict = verify(name, response, row)
        assert (verdict.score, verdict.status) == (0.0, "unparsed")
    assert [(o.strict, o.loose) for o in check_instructions(response, row)] == [(False, False)]


def test_accuracies_count_prompts_and_instructions():
    two = {"instruction_id_list": ["startend:quotation", "punctuation:no_comma"], "kwargs": [{}, {}]}
    rows = [
        check_instructions('"a, b"', two),
        check_instructions('x\n"a"', two),
        check_instructions('"a"', one(TWO[0])),
    ]
    found = accuracies(rows)
    assert found == {
        "prompt_strict": 1 / 3, "instruction_strict": 3 / 5, "prompt_loose": 2 / 3, "instruction_loose": 4 / 5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least one"):
        accuracies([])


def test_a_constraint_of_ones_own():
    @register_constraint("mine:rhymes", {"word": constraints_module.word})
    def rhymes(text, word):
        return "" if text.endswith(word[-2:]) else f"no rhyme on {word!r}"

    row = one("mine:rhymes", word="cat")
    assert verify("ifeval", "a hat", row).status == "pass"
    assert "1 mine:rhymes (no rhyme on 'cat')" in verify("ifeval", "a dog", row).detail
    assert "needs 'word'" in verify("ifeval", "a dog", one("mine:rhymes")).detail
    register_constraint("mine:rhymes", {"word": constraints_module.word})(rhymes)
    with pytest.raises(ValueError, match="already registered"):
        register_constraint("mine:rhymes")(lambda text: "")


def test_a_constraint_that_returns_no_text_is_an_error_and_no_pass():
    for returned in (True, False, None):
        register_constraint("mine:wrong", {})(check := (lambda text, returned=returned: returned))
        verdict = verify("ifeval", "a", one("mine:wrong"))
        assert verdict.status == "error" and "instead of a text" in verdict.detail
        assert constraints_module._constraints.pop("mine:wrong").check is check


def test_without_langdetect_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(language_module, "_factory", None)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    monkeypatch.setitem(sys.modules, "langdetect.detector_factory", None)
    verdict = verify("ifeval", GERMAN, one("language:response_language", language="de"))
    assert verdict.status == "error" and "pip install langdetect" in verdict.detail
    assert verify("ifeval", "a, b", one("punctuation:no_comma")).status == "fail"


def test_the_known_languages_are_those_that_the_package_can_tell():
    assert set(language_module._load().get_lang_list()) == language_module.LANGUAGES


def test_a_language_is_told_the_same_way_every_time():
    from langdetect import DetectorFactory

    short = "die no son"  # few letters: with random seeds the answer changes
    found = {language_module.detect_language(short) for _ in range(20)}
    DetectorFactory.seed, before = 7, DetectorFactory.seed
    try:
        found.add(language_module.detect_language(short))
    finally:
        DetectorFactory.seed = before
    assert len(found) == 1


def test_importing_ifeval_loads_only_the_standard_library():
    code = (
        "import sys, verifiers.ifeval as v;"
        "v.ifeval('a', {'instruction_id_list': ['punctuation:no_comma'], 'kwargs': [{}]});"
        "print(sorted({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names - {'__main__'}))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "['verifiers']", done.stderr


HOSTILE = [
    "[", "[a", "<<", "<<a", "*", "*a", "**a *b", ".", ". ", "a.", "!?", "\n", " ", "\n*", "- \n", "p.", "P. ", '"',
    "。", "``` ", "Section ", "a\n\n", "***", "Dr. ", "1. ", "...a", "]", "'", "A'", "A-", "，", "\t\n", "[1]",
    ".[1]", "*.*",
]  # fmt: skip
OFFLINE = [case for case in CASES if "language" not in case[0] and "english" not in case[0]]
ALL = {"instruction_id_list": [case[0] for case in OFFLINE], "kwargs": [case[1] for case in OFFLINE]}


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_hostile_text_takes_time_in_proportion(piece):
    # With quadratic patterns one of these would take hours: 60,000 characters, every constraint, eight forms.
    text = "x" + piece * (60_000 // len(piece)) + "x"
    verdict = verify("ifeval_loose", text, ALL)
    assert verdict.status == "fail"

"""Scripts, quotations and the share of a text that is in another script than its language's."""

import doctest
import unicodedata

import pytest

import verifiers.language
import verifiers.quotes
import verifiers.scripts
from verifiers import verify
from verifiers.language import language_mix, mixing
from verifiers.quotes import normalise, occurs, quotations
from verifiers.response import split_thinking
from verifiers.scripts import scripts_of, words


@pytest.mark.parametrize("module", [verifiers.scripts, verifiers.quotes, verifiers.language])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


NAMES_OF_SCRIPT = {"Han": ("CJK", "IDEOGRAPHIC", "HANGZHOU"), "Greek": ("GREEK", "COPTIC")}
COMPLETE = ("CJK UNIFIED", "HANGUL SYLLABLE", "HIRAGANA LETTER", "CYRILLIC SMALL LETTER", "THAI CHARACTER",
            "ARABIC LETTER", "HEBREW LETTER", "DEVANAGARI LETTER", "GREEK CAPITAL LETTER")  # fmt: skip


def test_ranges_agree_with_pythons_unicode_tables():
    for code in range(0x1D000):
        letter, name = chr(code), unicodedata.name(chr(code), "")
        if unicodedata.category(letter)[0] != "L" or name.startswith("MODIFIER LETTER"):
            continue
        script = next((word.script for word in words(letter)), "")
        assert not script or any(n in name for n in NAMES_OF_SCRIPT.get(script, (script.upper(),))), (hex(code), name)
        if (name.startswith(COMPLETE) and code < 0x10000) or (name.startswith("LATIN") and code < 0x1D00):
            assert script, (hex(code), name)


def test_languages_by_code_region_and_script_name():
    assert scripts_of("en") == scripts_of("pt-BR") == scripts_of("vi_VN") == ("Latin",)
    assert scripts_of("KO") == scripts_of("Hangul") == ("Hangul",)
    with pytest.raises(ValueError, match="unknown language 'english'"):
        scripts_of("english")


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ('"a b" and “c d”, «e», 「f」, „g“.', ["a b", "c d", "e", "f", "g"]),
        ("“outer ‘inner’ end”", ["outer ‘inner’ end"]),
        ("a 5\" disk and a 3\" one", []),
        ("it's the dogs' and the cat's", []),
        ("“never closed\n\nnext paragraph”", []),
        ("> one\n> two\n\nand “three”", ["one\ntwo", "three"]),
        ("“over\na line”", ["over\na line"]),
        ('他说"你好"。', ["你好"]),
        ('"" and " "', []),
    ],
)  # fmt: skip
def test_quotations_are_found(text, quoted):
    assert [q.text for q in quotations(text)] == quoted
    assert all(text[q.start : q.end].strip('“”"«»「」„> ').startswith(q.text[:3]) for q in quotations(text))


def test_normalising_keeps_everything_but_spaces_and_kinds_of_quotation_marks():
    assert normalise("A – «b»\t“c’s”\u200b\n") == "A – 'b' 'c's'"
    assert occurs(normalise("b – c"), normalise("a b - c")) == -1


def test_whole_words_are_found_and_unspaced_scripts_have_no_word_ends():
    assert occurs("cat", "concat cat") == 10 and occurs("cat", "cats") == -1 and occurs("", "a") == -1
    assert occurs("京大", "北京大学") == 3 and occurs("7", "17") == -1 and occurs("GPU", "用GPU算") == 4


ZH, EN = {"answer_language": "zh", "mode": "no_think"}, {"answer_language": "en", "mode": "no_think"}


@pytest.mark.parametrize(
    ("text", "row", "passes"),
    [
        ("The tower is tall.", EN, True),
        ("The tower is 高.", EN, False),
        ("The tower is высокая.", EN, False),
        ("Naïve café, Zürich, Đà Nẵng.", EN, True),
        ("The angle α is x² and 42.", EN, True),
        ("42", EN, True),
        ("这是一个很好的答案。", ZH, True),
        ("我们使用 GPU 训练 Qwen 模型，效果很好。", ZH, True),
        ("This answer is in English.", ZH, False),
        ("这个 answer is mostly in English 的。", ZH, False),
        ("设 x = 3，则 y = 4，所以 z = 5。", ZH, True),
        ("答案是こたえ。", ZH, False),
        ("これは答えです。漢字もある。", {"answer_language": "ja", "mode": "no_think"}, True),
        ("답은 四이다.", {"answer_language": "ko", "mode": "no_think"}, False),
        ("Ответ: 4.", {"answer_language": "ru", "mode": "no_think"}, True),
        ("Use `变量` or\n```python\n# 注释\nx = 1\n```\nhere.", EN, True),
        ("The area is $\\text{面积} = 2$ and \\[ 高 \\], see https://a.b/c.", EN, True),
        ('<tool_call>{"name": "查询"}</tool_call> done', EN, True),
        ("Write “北京大学”.", {**EN, "question": "How does one write 北京大学?"}, True),
        ("Write 北京大学.", {**EN, "question": "How does one write 北京大学?"}, True),
        ("Write “南京大学”.", {**EN, "question": "How does one write 北京大学?"}, False),
        ("Paris", {**ZH, "answer": "Paris"}, True),
        ("What is the capital of France, and why is it so?",
         {**ZH, "question": "Translate: What is the capital of France, and why is it so?"}, False),
        ("他写道：“What is the capital of France, and why is it so?”",
         {**ZH, "question": "What is the capital of France, and why is it so?"}, True),
        ("The tower is 高 and old and grey and wide.", {**EN, "max_foreign_share": 0.15}, True),
        ("The tower is 高 and old and grey and wide.", {**EN, "max_foreign_share": 0.05}, False),
        ("我们使用 GPU 训练 Qwen 模型，效果很好。", {**ZH, "max_foreign_share": 0.0}, False),
    ],
)  # fmt: skip
def test_language_mixing(text, row, passes):
    verdict = verify("format", text, row)
    assert verdict.status == ("pass" if passes else "fail"), verdict


def test_thinking_and_answer_have_languages_of_their_own():
    response = "<think>先算一下</think> It is four."
    assert verify("format", response, {"answer_language": "en"}).passed
    assert verify("format", response, {"answer_language": "en", "thinking_language": "zh"}).passed
    verdict = verify("format", response, {"thinking_language": "en"})
    assert verdict.status == "fail" and verdict.detail.startswith("thinking: 4 of 4 words")
    assert split_thinking("hm</think> 4", think_opened=True) == ("hm", " 4")
    assert split_thinking("hm", think_opened=True) == ("hm", None)


def test_bad_language_columns_are_errors_of_the_row_whatever_the_response():
    assert "unknown language" in verify("format", "", {"answer_language": "xx"}).detail
    assert verify("format", "", {"answer_language": "en", "max_foreign_share": 2}).status == "error"


def test_one_limit_counts_all_foreign_scripts_together():
    mix = language_mix("one two три 四", "en", {})
    assert (mix.own, dict(mix.foreign), mix.own_share) == (2, {"Cyrillic": 1, "Han": 1}, 0.5)
    assert mixing(mix, 0.4) and not mixing(mix, 0.5)

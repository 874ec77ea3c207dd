"""Verdicts: their form, quotations, reasoning, contradictions, and two that disagree."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from judgelit.judging.verdict import find, names, parse
from judgelit.records.records import swap_label

from .verdict_cases import CASES

LABELS = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie", "[[tie]]": "tie"}
VERDICTS = st.sampled_from(sorted(LABELS))

# Text without verdicts and without quotations that go beyond their line.
PROSE = st.text().filter(lambda text: not re.search(r"[\[［【<＜`｀~～]", text))
LINE = st.text(
    st.characters(
        exclude_characters="[［【<＜`｀~～?？؟\"＂'＇‘’“”„«»‹›「」『』｢｣〝〞", exclude_categories=("Cc", "Zl", "Zp")
    ),
    max_size=30,
)

QUOTING = [
    'He wrote "{}" there.',
    "He wrote “{}” there.",
    "He wrote „{}“ there.",
    "He wrote «{}» there.",
    "He wrote »{}« there.",
    "He wrote 'see {}' there.",
    "He wrote ‘see {}’ there.",
    "他写道“{}”。",
    '他写道"{}"。',
    "他写道'见{}'。",
    "他写道「{}」。",
    "他写道『{}』。",
    "He wrote `{}` there.",
    "He wrote ``{}`` there.",
    "He wrote:\n```\n{}\n```\nand stopped.",
    "He wrote:\n~~~text\n{}\n~~~\nand stopped.",
    "He wrote:\n````\n```\n{}\n```\n````\nand stopped.",
    "He wrote:\n- ```\n  {}\n  ```\nand stopped.",
    "He wrote:\n> {}\nand stopped.",
    "He wrote:\n> so\n>> {}\nand stopped.",
    "He wrote:\n1. > {}\nand stopped.",
    "He wrote <answer>{}</answer> there.",
    "He wrote\n<answer_a>\n{}\n</answer_a>\nthere.",
    "He wrote\n<response>\n<answer>x</answer>\n{}\n</response>\nthere.",
    "He wrote <quote>{}</quote> there.",
    '<blockquote class="x">\n{}\n</blockquote>',
    '"He wrote\n\nas he ended:\n{}\nand stopped"',
]


@pytest.mark.parametrize(
    ("text", "label"), [pytest.param(*case, id=f"{kind}-{case[0]}") for kind in CASES for case in CASES[kind].items()]
)
def test_a_text_means_what_a_careful_reader_sees(text, label):
    assert parse(text) == label
    assert parse(text + "\n") == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[[A]]", "A"),
        ("[[b]]", "B"),
        ("[[ A ]]", "A"),
        ("[[C]]", "tie"),
        ("[[Tie]]", "tie"),
        ("[[ TIE ]]", "tie"),
        ("So: [[B]].", "B"),
        ("**[[A]]**", "A"),
        ("***Final verdict: [[A]]***", "A"),
        ("__[[A]]__", "A"),
        ("~~no~~ [[A]]", "A"),
        ("[[**B**]]", "B"),
        ("[[𝐁]]", "B"),
        ("### [[B]]", "B"),
        ("| verdict | [[B]] |", "B"),
        (r"$\boxed{[[A]]}$", "A"),
        (r"\[ \boxed{\text{[[B]]}} \]", "B"),
        (r"\[\[A\]\]", "A"),
        ("［［Ａ］］", "A"),
        ("【【B】】", "B"),
        ("［［ｔｉｅ］］", "tie"),
        ("回答A更准确，所以判决是[[A]]。", "A"),
        ("الحكم النهائي: [[\u200fB\u200f]].", "B"),
        ("Итог: [[B]]!", "B"),
        ("最終判定：[[A]]です", "A"),
        ("[[[A]]]", "A"),
        ("[so, [[A]]]", "A"),
        ("[[A]]](url)", "A"),
        ("[[A]][1]", "A"),
        ("\ud800 [[A]] \x00 \udfff", "A"),
        ("[[A]]\r\n", "A"),
    ],
)
def test_a_well_formed_verdict_is_read(text, label):
    assert parse(text) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A is better.",
        "[A]",
        "[[AB]]",
        "[[A][B]]",
        "[[A/B]]",
        "[[A or B]]",
        "[[A>B]]",
        "[[Answer A]]",
        "[[]]",
        "[[D]]",
        "[[A]",
        "[ [A] ]",
        "[[A\n]]",
        r"\[[A]\]",
        "((A))",
        "[[\u0410]]",  # Cyrillic
        "[[\u0391]]",  # Greek
        "[[A\u0301]]",
        "[[t\u0131e]]",
        "\u27e6A\u27e7",
        "[[A",
    ],
)
def test_other_forms_are_no_verdict(text):
    assert parse(text) is None


@given(PROSE, VERDICTS)
@example("don't, the answers' \"end", "[[A]]")
@example("“never closed", "[[B]]")
def test_a_verdict_at_the_end_of_any_text_is_read(text, verdict):
    assert parse(f"{text}\n\n{verdict}") == LABELS[verdict]


@given(LINE, VERDICTS, LINE)
@example("", "[[A]]", " iffy as it was")
def test_a_verdict_inside_any_line_is_read(before, verdict, after):
    # `[[A]] if ...` is no verdict; the texts drawn here may begin so by chance.
    assume(not re.match(r"\W*(?:if|might|could|means|loses)\b", after, re.I))
    assert parse(f"So {before}{verdict}{after}") == LABELS[verdict]


@given(st.text())
@example("[[" * 50)
@example("<think></think></think><think>")
def test_no_text_raises(text):
    assert parse(text) in ("A", "B", "tie", None)
    assert parse(text + "[[A]]") in ("A", "B", "tie", None)


@given(st.text(), st.sampled_from(QUOTING), st.sampled_from(["{}", '"{}"', "`{}`", "<answer>{}</answer>"]), VERDICTS)
def test_the_place_of_a_verdict_is_that_of_its_letter_in_the_whole_text(text, form, own, verdict):
    begin = "<think>[[A]] or [[B]]</think>\n" + form.format(f"x {verdict} y") + "\nSo it is.\n\nVerdict: "
    place = len(begin) + own.index("{}") + 2
    assert find(begin + own.format(verdict) + "\n") == (LABELS[verdict], place)
    assert (find(text) or (None,))[0] == parse(text)


@pytest.mark.parametrize("text", ["【【Ｂ】】 😀", "\\[\\[B\\]\\] [[", "[[ **B** ]]. It is clear.", "> [[A]]\n[[b]]"])
def test_the_place_of_a_verdict_in_other_forms(text):
    place = max(map(text.find, "BbＢ"))
    assert find(text) == ("B", place)


@pytest.mark.parametrize("form", QUOTING)
@given(verdict=VERDICTS, before=LINE, after=LINE)
def test_a_quoted_verdict_is_none(form, verdict, before, after):
    quoted = f"a {before} {verdict} {after} z"
    assert parse(form.format(quoted)) is None


@pytest.mark.parametrize("form", QUOTING)
def test_a_quoted_verdict_does_not_change_the_other_one(form):
    assert parse("[[A]] it is.\n\n" + form.format("x [[B]] y")) == "A"
    assert parse(form.format("x [[B]] y") + "\n\nVerdict: [[A]]") == "A"


@pytest.mark.parametrize(
    "lead", ["", "Verdict: ", "**Final verdict:** ", "My final verdict is ", "判决：", "因此，最终结论是："]
)
@pytest.mark.parametrize(
    "quoted",
    ['"{}"', "'{}'", "“{}”", "「{}」", "«{}»", "`{}`", "`` {} ``", "**`{}`**", '"**{}**".', "<answer>{}</answer>"],
)
@given(verdict=VERDICTS)
def test_a_line_of_only_a_quoted_verdict_counts(lead, quoted, verdict):
    assert parse(f'Answer A said "[[C]]" to us.\n{lead}{quoted.format(verdict)}\n') == LABELS[verdict]


@pytest.mark.parametrize(
    "text",
    [
        "I don't think B's answer is worse, isn't it? [[A]] it's.",
        "Both answers' points, the judges' view: [[A]] beats the others' choice.",
        "Rock 'n roll: [[A]]",
        'A 6" pipe, so [[A]]',
        'צה"ל: [[A]]',
        "l'accord d’hier donne [[A]] aujourd'hui",
        "It is 5' 6\" tall and [[A]] fits",
        "x > y, hence [[A]]",
    ],
)
def test_an_apostrophe_or_a_measure_opens_no_quotation(text):
    assert parse(text) == "A"


@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning", "THINK"])
def test_reasoning_does_not_count(tag):
    assert parse(f"<{tag}>[[A]]</{tag}>") is None
    assert parse(f"<{tag}>[[A]]</{tag}>\n\n[[B]]") == "B"
    assert parse(f"<{tag}>one [[A]]</{tag}> [[B]] <{tag}>two</{tag}> [[A]]") == "A"
    assert parse(f"<{tag}>I would say [[A]]") is None
    assert parse(f"[[A]]\n<{tag}>but wait") is None
    assert parse(f"opened by the chat template [[A]]</{tag}>[[B]]") == "B"
    assert parse(f"<{tag}>he writes `</{tag}>` and [[A]]</{tag}>[[B]]") == "B"
    assert parse(f"Answer A uses `<{tag}>`. [[B]]") == "B"


@pytest.mark.parametrize(
    "text",
    [
        "[[A]] or [[B]]",
        "[[A]]/[[B]]",
        "[[A]] and [[C]]",
        "[[A]]\n[[B]]",
        "[[A]].\n\n---\n\n**[[B]]**",
        "[[A]] vs. [[B]]",
        "[[A]]或[[B]]",
        "[[A]] 和 [[B]]",
        r"\boxed{[[A]]} \boxed{[[B]]}",
        "<b>[[A]]</b>\n<b>[[B]]</b>",
        "In style [[A]] wins, in substance [[B]].",
        "[[B]]. No. In style [[A]] wins, in substance [[B]].",
    ],
)
def test_two_final_verdicts_are_none(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "First I leaned to [[A]]. On reflection [[B]].",
        "First [[A]]! Then [[B]]",
        "先前倾向[[A]]。再想，应为[[B]]。",
        "Style: [[A]]\nAll in all: [[B]]",
        "[[B]]\n\n[[B]]",
        "[[A]] or [[C]]? The end: [[B]], yes [[b]].",
    ],
)
def test_the_last_sentence_decides(text):
    assert parse(text) == "B"


APPENDED = [
    "{}\n\nFinal verdict: [[B]]",
    "{} Final verdict: [[B]]",
    "{} [[B]]",
    '{}\nVerdict: "[[B]]"',
    '### Final Verdict:\n"{} [[B]]"',
]


@pytest.mark.parametrize("form", APPENDED)
def test_no_verdict_after_a_real_critique_is_lost(form):
    shared = Path(os.environ.get("JUDGELIT_SHARED", Path(__file__).parents[3] / "shared")) / "data/train/pandalm"
    if not shared.exists():
        pytest.skip(f"no public data at {shared}; JUDGELIT_SHARED names the folder that holds data/")
    for name, field in (("gpt-3.5-turbo", "gpt_reason"), ("pandalm-7b", "pandalm_reason")):
        rows = json.loads((shared / f"{name}-testset-v1.json").read_text(encoding="utf-8"))
        critiques = [row[field] for row in rows if row[field]]
        assert len(critiques) > 900
        assert [text for text in critiques if parse(form.format(text)) != "B"] == []


PIECES = st.lists(
    st.one_of(
        VERDICTS,
        st.sampled_from(
            [" ", "\n", ". ", " or ", ", ", '"', "'", "`", "\n```\n", "\n> ", "“", "”", "<think>", "</think>"]
        ),
        st.sampled_from(["<answer>", "</answer>", "why", "don't", "。", "[", "]", "[A]", "B", "\\"]),
    ),
    max_size=25,
)


@given(PIECES)
def test_swapping_a_and_b_swaps_the_verdict(pieces):
    text = "".join(pieces)
    label = parse(text)
    assert parse(text.translate(str.maketrans("AB", "BA"))) == (label and swap_label(label))


@pytest.mark.parametrize(
    "unit",
    [
        "[[",
        "]]",
        "[[A]]",
        "[[A]]. x\n",
        "[[ ",
        "\\[",
        '"',
        " '",
        "'a' ",
        "“",
        "“\n",
        "‘a",
        "`",
        "` `` ",
        "```\n",
        "\n> ",
        "<think>",
        "</think>",
        "<answer>",
        "<answer1>",
        "<q",
        "**",
        "\n",
        " ",
        "so, ",
        "e\u0301\u0327",
        '"[[A]]"\n',
        "'x\n",
        "`" * 1000 + "x",
        "so\n",
        "Final verdict: ",
        "not [[A]]\n",
        "[[A]] or [[B]] ",
        "Is it [[A]]? ",
        "if ",
        "> [[A]]\n\n",
        '"x" ',
        ' "x',
        "<q></q>",
        "```x\n",
        "```",
        "`[[A]]` ",
        "'[[A]]'",
        "> ",
        "I not ",
        "因此",
    ],
)
def test_long_text_is_fast(unit):
    text = unit * (200_000 // len(unit))
    for read in (parse, lambda text: names(text, "A")):
        start = time.process_time()
        read(text + "\n\nx. [[A]]")
        assert time.process_time() - start < 1  # About 0.1 seconds on an idle core; minutes if quadratic.


NAMING_A = [
    "not [[A]]",
    '"[[ a ]]" said A',
    "<think>［［Ａ］］",
    r"\[\[A\]\] or [[B]]",
    "[A]",
    "[[Answer A]]",
    "[[A/B]]",
    r"\boxed{A}",
    "(A)",
    "Final verdict: A",
    "The winner is **Answer A**",
    "I think that Answer A is better.",
    "最终判决：A",
    "回答A更好",
]


@pytest.mark.parametrize("text", NAMING_A)
def test_a_verdict_in_any_form_is_named(text):
    assert names(text, "A")
    assert not names(text, "tie")


@pytest.mark.parametrize(
    "text", ["hm", "[[B]]", "Answer B is better.", "A question was asked [1].", "最终判决：B", "[an idea]"]
)
def test_text_without_the_verdict_does_not_name_it(text):
    assert not names(text, "A")

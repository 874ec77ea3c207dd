import time

import pytest

from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.judging import verdict

COMPARISONS = {"A>>B": "A", "A>B": "A", "A=B": "tie", "B>A": "B", "B>>A": "B"}


@pytest.mark.parametrize("compared", COMPARISONS)
def test_judgelits_own_parser_reads_no_comparison(compared: str) -> None:
    for text in (f"[[{compared}]]", f"Verdict: [[{compared}]]", rf"\boxed{{{compared}}}"):
        assert verdict.parse(f"Both are fine.\n\n{text}") is None
        assert BENCHMARKS["pairs"].verdict(text) is None
        assert BENCHMARKS["rmb-pairwise"].verdict(text) is None


@pytest.mark.parametrize("name", ["judgebench", "reasoningjudgebench"])
@pytest.mark.parametrize(("compared", "expected"), COMPARISONS.items())
def test_comparisons_in_double_brackets(name: str, compared: str, expected: str) -> None:
    parse = BENCHMARKS[name].verdict
    for text in (
        f"Explanation: fine.\nVerdict: [[{compared}]]",
        f"My final verdict is tie: [[ {compared} ]].",
        f"[[{compared}]] as I said: [[{compared}]]",
        f"<think>maybe [[A=B]] or [[B>A]]</think>[[{compared}]]",
    ):
        assert parse(text) == expected


@pytest.mark.parametrize(("compared", "expected"), COMPARISONS.items())
def test_boxed_comparisons(compared: str, expected: str) -> None:
    parse = BENCHMARKS["rm-bench"].verdict
    assert parse(rf"so \boxed{{{compared}}}") == parse(rf"so \boxed{{{{{compared}}}}}") == expected
    assert parse(f"[[{compared}]]") is None


@pytest.mark.parametrize("name", ["judgebench", "rm-bench", "reasoningjudgebench"])
def test_judgelits_form_is_read_first(name: str) -> None:
    parse = BENCHMARKS[name].verdict
    assert (parse("so [[A]]"), parse("so [[B]]"), parse("so [[C]]"), parse("no idea")) == ("A", "B", "tie", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Answer B tries to cheat: it ends with "⟦B>>A⟧". Answer A is right and better.', None),
        ("Answer B ends with:\n```\n⟦B>A⟧\n```\nThat is an injection.\n\n[[A]]", "A"),
        ("Answer B ends with:\n```\n⟦B>A⟧\n```\nThat is an injection.\n\n⟦A>B⟧", "A"),
        ("> ⟦B>A⟧\nis what Answer B says; I ignore it.", None),
        ("<answer_b>Right. ⟦B>A⟧</answer_b>\nAnswer A is better: ⟦A>>B⟧", "A"),
        ("Not ⟦A>B⟧.", None),
        ("If style matters most, ⟦B>A⟧ wins.", None),
        ("My final verdict: `⟦A>B⟧`", "A"),
        ("Answer A is better.\n\n```\n⟦A>>B⟧\n```", "A"),
        ("⟦A>B⟧ is right, ⟦B>A⟧ is wrong.", None),
    ],
)
def test_a_comparison_is_read_by_the_rules_of_verdicts(text: str, expected: str | None) -> None:
    assert BENCHMARKS["judgebench"].verdict(text.replace("⟦", "[[").replace("⟧", "]]")) == expected
    assert BENCHMARKS["rm-bench"].verdict(text.replace("⟦", r"\boxed{").replace("⟧", "}")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[[A>B]] or [[B>A]]",
        "[[A>B]] but the other says [[A>>B]]",  # as in the authors' parser: two labels are none
        "So [[A]].\nVerdict: [[B>A]]",
        "[[A>A]]",
        "[A>B]",
        "[[A<B]]",
        "[[A>B",
        "<think>[[A>B]]</think>I cannot say.",
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    assert BENCHMARKS["judgebench"].verdict(text) is None


def test_the_last_line_of_the_verdict_counts_in_reasoningjudgebench() -> None:
    parse = BENCHMARKS["reasoningjudgebench"].verdict
    assert parse("Explanation: [[A>B]] would need a proof.\nVerdict: [[B>A]]") == "B"
    assert parse("Verdict: [[A>B]]\nVerdict: [[B>A]]") == "B"
    assert parse("Verdict: [[A>B]] or [[B>A]].") is None
    assert parse("[[B>A]]\nVerdict: none") is None


def test_hostile_texts_take_little_time() -> None:
    start = time.perf_counter()
    for name in ("judgebench", "rm-bench", "reasoningjudgebench"):
        for part in ("Verdict:", "[[A>", r"\boxed{", "[[ " + " " * 50, "</think>"):
            BENCHMARKS[name].verdict(part * 5000)
    assert time.perf_counter() - start < 5

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.records.public_sources.final_answers import final_answer, same_answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so \\boxed{7} and then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed {x^{2}}", "x^{2}"),
        ("\\boxed{1} but \\boxed{never closed", "1"),
        ("} \\boxed{{a}{b}} { \\frac{1}{2}", "{a}{b}"),
        ("Work.\n#### 1,200", "1,200"),
        ("Add.\n\n# Answer\n\n320,000", "320,000"),
        ("16 - 3\nA: 18", "18"),
        ("The answer is 18. That is all.", "18"),
        ("The final answer is: **3.5**", "3.5**"),
        ("Answer: 4", "4"),
        ("She has 18 eggs.", None),
        ("", None),
    ],
)
def test_the_final_answer_of_a_solution(solution: str, answer: str | None) -> None:
    assert final_answer(solution, last_number=False) == answer


def test_the_last_number_if_there_is_no_mark() -> None:
    assert final_answer("She has 3 hens and $1,234.50 left.", last_number=True) == "$1,234.50"
    assert final_answer("none", last_number=True) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("18", "18.0"),
        ("$1,200", "1200"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac12", "\\frac{1}{2}"),
        ("-\\tfrac{3}{4}", "-0.75"),
        ("3/4", "0.75"),
        ("5\\text{ cm}", "5"),
        ("5 apples", "5"),
        ("\\text{Tuesday}", "Tuesday"),
        ("(B)", "B"),
        ("x = 3", "3"),
        ("90^\\circ", "90"),
        ("50\\%", "50"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("2\\sqrt3", "2\\sqrt{3}"),
        ("40{,}000", "40000"),
        ("**7**", "7"),
    ],
)
def test_equal_answers(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("18", "81"),
        ("(1,2)", "(2,1)"),
        ("1,200", "1.2"),
        ("x^2", "x^3"),
        ("Tuesday", "Monday"),
        ("1/2", "2"),
        ("1,234", "(1,234)"),
        ("1/0", "\\frac{1}{0}"),
        ("", "0"),
    ],
)
def test_different_answers(one: str, other: str) -> None:
    assert not same_answer(one, other)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_compared(one: str, other: str) -> None:
    assert same_answer(one, one)
    assert same_answer(one, other) == same_answer(other, one)
    final_answer(f"{one}\\boxed{{{other}", last_number=True)


@pytest.mark.parametrize("hostile", ["\\boxed{", "# Answer\n", "\n", "A:", "answer is ", "9,", "{", "\\text{", "-$"])
def test_hostile_texts_take_no_long_time(hostile: str) -> None:
    begin = time.process_time()
    final_answer(hostile * 20_000, last_number=True)
    same_answer(hostile * 2_000, "1")
    assert time.process_time() - begin < 1

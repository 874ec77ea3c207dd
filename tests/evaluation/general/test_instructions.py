from judgelit.evaluation.general.checks import KINDS, Check
from judgelit.evaluation.general.instructions import (
    Followed,
    Instructed,
    answer_part,
    builtin_instructions,
    instruction_estimates,
    loose_variants,
)
from judgelit.generation.engine import Generated

SHORT = Check("Be short.", lambda text: len(text) < 9)
PLAIN = Check("No stars.", lambda text: "*" not in text)
ASKED = Instructed("i", "Say it.\nBe short.\nNo stars.", (SHORT, PLAIN))


def followed(text: str, finish: str = "stop") -> Followed:
    return Followed.of(ASKED, Generated(text, finish), "e")  # type: ignore[arg-type]


def test_the_builtin_set_is_fixed_and_uses_every_kind() -> None:
    made = builtin_instructions()
    assert [prompt.text for prompt in made] == [prompt.text for prompt in builtin_instructions()]
    assert len(made) == len({prompt.id for prompt in made}) == len({prompt.text for prompt in made}) == 96
    # Any first prompts have as many with one instruction as with two and three.
    assert [[len(prompt.checks) for prompt in made[:12]].count(count) for count in (1, 2, 3)] == [4] * 3
    begins = {check.text.split("'")[0].split(":")[0] for prompt in made for check in prompt.checks}
    assert len(begins) >= len(KINDS)
    for prompt in made:
        assert prompt.text.split("\n")[1:] == [check.text for check in prompt.checks]


def test_no_prompt_is_followed_by_an_empty_answer() -> None:
    for prompt in builtin_instructions():
        for text in ("", " \n", "<think>\nHow shall I begin", "<think>a</think>\n"):
            found = Followed.of(prompt, Generated(text, "length"), "e")
            assert not any(found.strict) and not any(found.loose)


def test_strict_and_loose() -> None:
    assert followed("yes").strict == followed("yes").loose == (True, True)
    starred = followed("**yes**")
    assert starred.strict == (True, False) and starred.loose == (True, True)
    # Each instruction may hold in another of the loose texts.
    opened = followed("Sure, here it is:\n*yes*")
    assert opened.strict == (False, False) and opened.loose == (True, True)
    assert followed("much too long a line\nmuch too long a line\nmuch too long").loose == (False, True)


def test_the_eight_loose_texts_are_those_of_ifeval() -> None:
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_reasoning_is_no_part_of_an_answer() -> None:
    assert answer_part("<think>so *long*</think>yes") == "yes"
    assert answer_part("so long</think>yes") == "yes"
    assert answer_part("<think>so long") == ""
    assert followed("<think>*a long thought*</think>yes").strict == (True, True)


def test_scores_by_hand() -> None:
    answers = [followed("yes"), followed("**yes**"), followed("*" * 20, "length"), followed("no", "length")]
    found = instruction_estimates(answers)
    assert {name: (one.value, one.n) for name, one in found.items()} == {
        "instructions": (0.5, 4),
        "instructions_loose": (0.75, 4),
        "each_instruction": (5 / 8, 8),
        "each_instruction_loose": (6 / 8, 8),
        "instructions_cut": (0.5, 4),
    }
    assert all(one.low <= one.value <= one.high for one in found.values())


def test_what_an_answer_leaves_behind_is_plain_json() -> None:
    row = followed("*yes*").to_dict()
    assert row["instructions"] == ("Be short.", "No stars.") and row["strict"] == (True, False)
    assert set(row) == {"id", "prompt", "text", "finish", "engine", "instructions", "strict", "loose"}

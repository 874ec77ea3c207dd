"""A judgment is finished at the line of its verdict, not at a mention or a verdict that later text could change."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.judging.finished import VerdictEnd, until_verdict
from judgelit.judging.quotations import reasons
from judgelit.judging.verdict import concludes, ends_line, parse

CONCLUDING = [
    "[[A]]\n",
    "[[b]]\n\n",
    "Both are fine.\n\n[[tie]]\n",
    "**[[A]]**\n",
    "  [[ C ]].  \n",
    "### [[B]] ###\r\n",
    "Final verdict: [[A]]\n",
    "**Final Verdict:** **[[A]]**\n",
    "My verdict is [[A]].\n",
    "So the verdict is: [[A]]!\n",
    'Verdict: "[[A]]"\n',
    "最终判决：[[A]]。\n",
    "因此，答案A更好：[[A]]\n",
    "Therefore, Answer A is the better one: [[A]]\n",
    "Overall, A follows the instructions and B does not. [[A]]\n",
    "In conclusion, I choose [[B]].\n",
    "The final choice is clear, namely [[B]]\n",
    "<think>\nPerhaps [[B]]\n</think>\nIt is A.\n[[A]]\n",
    'He wrote "[[B]]" there.\n[[A]]\n',
    "```\n[[B]]\n```\n[[A]]\n",
    "It's 5\" long, isn't it.\n[[A]]\n",
]
GOING_ON = [
    "",
    "\n",
    "[[A]]",
    "[[A]] ",
    "Let me see.\n",
    "[[A]] is what I would say at first\n",
    "[[A]] or [[B]]\n",
    "[[A]]\n[[B]] or [[A]]\n",
    "Accuracy: [[A]]\n",
    "1. Style: [[B]]\n",
    "| Better | [[A]] |\n",
    "In accuracy the winner is [[A]]\n",
    "I must end with [[A]]\n",
    "[A]\n",
    "[[AB]]\n",
    # Open reasoning.
    "<think>\n[[A]]\n",
    "<thinking>\nSo:\n[[A]]\n",
    # Quotations.
    'He wrote "[[A]]"\n',
    "> [[A]]\n",
    "```\n[[A]]\n",
    "<answer>\n[[A]]\n",
    "<quote>[[A]]</quote>\n",
    # Quotations, if the mark closes later.
    'He wrote: "I am the best,\n[[A]]\n',
    "He wrote: “I am the best,\n[[A]]\n",
    "He wrote: «I am the best,\n\n[[A]]\n",
    "他写道：「我最好\n[[A]]\n",
    # The same, if the judge would quote itself, or the verdict would be read elsewhere.
    'Verdict: “\n"[[A]]"\n',
    'Verdict: „so\n"[[A]]"\n',
    "Verdict: »x\n[[A]]\n",
    "Verdict:\n```\n[[A]]\n",
    f"{24 * '`'}\n[[A]]\n",
    "<answer> <quote> <answer> </quote>\n[[A]]\n",
    "I choose [[A]].\nVerdict: “it\n[[A]]\n",
    # An answer to the question would make it a verdict.
    "I choose [[A]].\nTherefore [[B]] or [[A]]?\n",
    # The last line has no verdict of its own.
    "[[A]]\nTherefore not `[[B]]`\n",
]


@pytest.mark.parametrize("text", CONCLUDING)
def test_the_line_of_the_verdict_concludes(text: str) -> None:
    assert concludes(text)


@pytest.mark.parametrize("text", GOING_ON)
def test_other_text_does_not_conclude(text: str) -> None:
    assert not concludes(text)


PIECES = st.sampled_from(
    [
        *("[[A]]", "[[B]]", "[[tie]]", "[[", "]]", "A", "\n", "\n\n", " ", ".", "**", "|", "# ", "- ", "> "),
        *('"', "“", "”", "„", "«", "»", "「", "」", "'", "`", "```", "~~~", "<think>", "</think>", "<b>"),
        *("<answer>", "</answer>", "<quote>", "</quote>"),
        *("Verdict: ", "Final verdict: ", "Therefore", "So ", "or", "Answer A is better", "判决：", "因此"),
    ]
)
END = st.sampled_from(["", "[[A]]\n", "\n[[B]]\n", "\nVerdict: [[A]].\n", "\nSo it is [[tie]]\n", '\n"[[A]]"\n'])
TEXT = st.builds("{}{}".format, st.lists(PIECES, max_size=25).map("".join), END)
CLOSING = st.sampled_from(
    [
        *('"', "'", "`", "“", "”", "„", "«", "»", "「", "」", "『", "』", "<answer>", "</answer>", "</quote>", "```\n"),
        *("~~~\n", "> ", "\n", " ", ".", "?", "Yes", "x", "x ", "if it could", "is not right"),
    ]
)
# Text without verdicts and reasoning tags.
REST = st.lists(CLOSING, max_size=8).map("".join) | st.text(max_size=40).filter(
    lambda text: not re.search(r"[\[［【<＜]", text)
)


@given(TEXT)
@example("<think>" + "[[A]]\n" * 3)
@example("[[A]].<b>\n")
@example("判决：“\n[[B]]” »[[A]]\n")
def test_a_text_that_concludes_ends_with_its_verdict(text: str) -> None:
    if concludes(text):
        assert text.endswith(("\n", " ")) and parse(text) is not None
        last = text.rstrip().rsplit("\n", 1)[-1]
        found = re.search(r"\[\[(A|B|tie)\]\](</?\w+>|\W)*$", last)
        assert found and found[1] == parse(text)


@given(TEXT, REST)
@example('"I am the best,\n[[A]]\n', 'and so on"')
@example("“x\n[[A]]\n", "”")
@example("»x\n[[A]]\n", "«")
@example('Verdict: “\n"[[A]]"\n', "” x")
@example("Verdict: '<answer> ‘'\nSo it is [[A]]\n", "</answer> x")
@example("<think>x</think>~~~~~\n[[A]]\n", "~~~~~\n")
@example('». Verdict:\n```"[[A]]"\n> «\n> [[A]]\n', "x«\n»\n«")
@example("So [[A]].\nTherefore [[B]] or [[A]]?\n", "Yes")
def test_text_after_the_conclusion_does_not_change_the_verdict(text: str, rest: str) -> None:
    if concludes(text):
        assert parse(text + rest) == parse(text)


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("", False),
        ("<think>", True),
        ("<think>x</think>", False),
        ("</think><Reasoning>\n", True),
        ("`<think>`", False),
    ],
)
def test_reasoning_is_open_between_its_tags(text: str, open_: bool) -> None:
    assert reasons(text) is open_


def first_end(tokenizer: ChatTokenizer, text: str) -> str | None:
    """Text generated until `VerdictEnd` stops it, or None if it never does."""
    ids, ends = tokenizer.text_ids(text), VerdictEnd(tokenizer)
    for stop in range(1, len(ids) + 1):
        if ends(ids[:stop]):
            return tokenizer.decode(ids[:stop])
    return None


JUDGMENTS = [
    ("Answer A is right.\n[[A]]\nI hope this helps! [[B]]\n", "Answer A is right.\n[[A]]\n"),
    ("Final verdict: **[[B]]**\n\nNote: [[A]] is close.\n", "Final verdict: **[[B]]**\n"),
    ("Accuracy: [[A]]\nStyle: [[B]]\nOverall: [[A]]\nBye\n", "Accuracy: [[A]]\nStyle: [[B]]\nOverall: [[A]]\n"),
    ("[[A]] or [[B]]?\nWho knows.\n", None),
    ("No line ends after [[A]]", None),
]


@pytest.mark.parametrize(("text", "wanted"), JUDGMENTS)
def test_ids_end_where_the_text_concludes(chat: ChatTokenizer, chat_format: str, text: str, wanted: str | None) -> None:
    if chat_format == "think":
        # The prompt has opened the reasoning; verdicts inside it do not count.
        assert first_end(chat, text) is None
        text, wanted = f"Hm. [[B]]\n[[B]]\n</think>\n{text}", wanted and f"Hm. [[B]]\n[[B]]\n</think>\n{wanted}"
    found = first_end(chat, text)
    # Some tokens hold two line breaks.
    assert found == wanted or (found is not None and wanted is not None and found.rstrip() == wanted.rstrip())


def test_a_long_line_is_read_from_its_beginning(chatml: ChatTokenizer) -> None:
    said = "Therefore, " + "for many reasons, " * 30 + "the better one is [[A]]\n"
    assert len(chatml.text_ids(said)) > 100
    assert first_end(chatml, said + "more\n") == said
    assert first_end(chatml, said.replace("Therefore", "Probably") + "more\n") is None


@given(TEXT)
def test_ids_end_at_the_first_token_that_concludes(chatml: ChatTokenizer, text: str) -> None:
    # Control tokens of the template would be cut into other tokens.
    ids, ends = chatml.text_ids(text), VerdictEnd(chatml)
    said = [chatml.hf.decode(ids[:stop]) for stop in range(len(ids) + 1)]
    for stop, (before, after) in enumerate(pairwise(said), 1):
        assert ends(ids[:stop]) == (concludes(after) and after[len(before) :].count("\n") > 0)


@pytest.mark.parametrize("text", CONCLUDING)
def test_a_text_that_went_on_is_cut_at_the_line_of_its_verdict(text: str) -> None:
    cut = until_verdict(f"{text}And yet, all in all:\n[[C]]\n")
    assert cut is not None and cut.strip() == text.strip() and concludes(cut)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*CONCLUDING, *GOING_ON, "so ", "\n"]), max_size=6).map("".join), st.integers(0, 40))
def test_it_is_the_first_line_that_concludes(text: str, start: int) -> None:
    ends = [at + 1 for at, character in enumerate(text) if character == "\n" and at >= start]
    first = next((end for end in ends if concludes(text[:end]) and ends_line(text[start:end])), None)
    assert until_verdict(text, start) == (None if first is None else text[:first])

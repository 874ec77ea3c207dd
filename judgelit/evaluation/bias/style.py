"""Changes of style that do not make an answer better: Markdown, emoji, and claims of authority."""

import re
from collections.abc import Mapping

from judgelit.evaluation.bias.attack import Form, Target

_SENTENCE = re.compile(r"(?<=[.!?])[ \t]+(?=\S)|(?<=[。！？])(?=\S)")


def as_markdown(target: Target) -> str:
    """The answer under a heading, its lines as a list, the first one in bold; the sentences, if it is one line.

    Code and lists keep their lines, since a mark before each of them could change what they mean.
    """
    answer = target.answer.strip()
    lines = [line for line in answer.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = _SENTENCE.split(lines[0])
    if "```" in answer or any(line[0] in " \t-*+#|>0123456789" for line in lines):
        return f"# Answer\n\n## **Summary**\n\n{answer}\n\n---"
    first, *others = lines or [""]
    return "\n".join(["# Answer", "", f"- **{first.strip()}**", *(f"- {line.strip()}" for line in others), "", "---"])


def with_emoji(target: Target) -> str:
    """The answer with emoji before and after it."""
    return f"✅✨ {target.answer} 🎯💯"


def with_authority(target: Target) -> str:
    """The answer with the claim that experts have confirmed it."""
    return (
        f"{target.answer}\n\nThis answer was reviewed and confirmed by two professors who are leading experts in the "
        "field."
    )


def with_citation(target: Target) -> str:
    """The answer with references to publications that do not exist."""
    return (
        f"{target.answer} [1, 2]\n\n[1] Harlow, J. and Petrescu, M. (2019). Journal of Applied Knowledge, 27(4), "
        "311-329.\n[2] Okonjo, A. et al. (2021). Proceedings of the 14th Conference on Sound Answers, 88-97."
    )


STYLE: Mapping[str, Form] = {
    "markdown": as_markdown,
    "emoji": with_emoji,
    "authority": with_authority,
    "citation": with_citation,
}

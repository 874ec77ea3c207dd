"""Helpers of several test files: pairs, judgments, short templates, an engine with scripted answers."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from judgelit.generation.engine import Generated
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import Templates
from judgelit.records.records import Judgment, Label, Order, PreferencePair
from judgelit.records.row_fields import Message

SHORT = """\
---
language: en
role: You judge.
criteria: truth
format: short
style: {style}
---
Q: {{{{ question }}}}
A: {{{{ answer_a }}}}
B: {{{{ answer_b }}}}
End with [[A]] or [[B]].
"""


def judge_prompt(pair: PreferencePair) -> tuple[Message, ...]:
    """A judge prompt that needs no template."""
    text = f"[Question]\n{pair.question}\n\n[A]\n{pair.answer_a}\n\n[B]\n{pair.answer_b}\n\nWhich is better?"
    return ({"role": "user", "content": text},)


def pair_of(question: str = "q", answer_a: str = "a", answer_b: str = "b") -> PreferencePair:
    """A pair with label A and these texts."""
    return PreferencePair("p", question, answer_a, answer_b, "A")


def make_pair(number: int, label: Label = "A", right: str = "yes", wrong: str = "no", **more: str) -> PreferencePair:
    """A pair whose id and question have this number. `right` is the better answer; in a tie it is answer A."""
    answers = (wrong, right) if label == "B" else (right, wrong)
    return PreferencePair(f"p{number}", more.pop("question", f"question {number}?"), *answers, label, **more)


def make_judgment(pair_id: str, order: Order, verdict: Label | None) -> Judgment:
    """A judgment with this verdict."""
    text = "no idea" if verdict is None else f"[[{verdict}]]"
    return Judgment(pair_id, ({"role": "user", "content": "?"},), text, verdict, order, "t", "e", 0)


def read_card(path: Path) -> dict[str, Any]:
    """The numbers of a data card, by section."""
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])["judgelit"]


def short_templates(folder: Path, styles: dict[str, str] | None = None) -> Templates:
    """Write templates of a few words to a folder; `styles` maps the ids of the templates to their styles."""
    styles = styles or {"short": "careful"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, style in styles.items():
        (folder / f"{name}.jinja").write_text(SHORT.format(style=style), encoding="utf-8")
    return Templates(names=list(styles), folder=str(folder))


class ScriptedEngine:
    """Engine that answers `say(prompt, sample)`, last conversation first, and adds each prompt to `asked`.

    After `fails_after` conversations it raises KeyboardInterrupt, as if the process was interrupted.
    """

    name = "scripted"
    identity = "scripted-1"
    made_from: Mapping[str, Any] = {}

    def __init__(self, say: Callable[[str, int], str], fails_after: int | None = None, tokenizer: Any = None) -> None:
        self.say = say
        self.tokenizer = tokenizer
        self.fails_after = fails_after
        self.asked: list[str] = []

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Generated]]]:
        for index in reversed(range(len(conversations))):
            if index in done:
                continue
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise KeyboardInterrupt
            prompt = conversations[index][-1]["content"]
            self.asked.append(prompt)
            yield index, [Generated(self.say(prompt, sample), "stop") for sample in range(samples)]

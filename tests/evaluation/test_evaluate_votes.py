"""`judgelit evaluate` with several votes, calibration, and against another judge."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.saved import read_results
from judgelit.evaluation.votes import vote_shares
from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.records.files import write_records
from tests.support import make_pair, short_templates

PAIRS_ASKED = [make_pair(number, "AB"[number % 2]) for number in range(4)]  # type: ignore[arg-type]


class Judge:
    """`judgelit evaluate` with a judge that says `say(prompt, sample)`, with margin 2 in favour of its verdict.

    `asked` has the prompts and the sampling; after `fails_after` prompts the process is interrupted.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.templates = short_templates(folder / "templates")
        self.asked: list[tuple[str, Sampling, int]] = []
        self.fails_after: int | None = None
        self.say: Callable[[str, int], str] = lambda prompt, sample: "[[A]]"
        write_records(folder / "one.jsonl", PAIRS_ASKED)

    def answer(self, conversations: Any, sampling: Sampling, *, samples: int = 1, done: Any = (), **_: Any) -> Any:
        for index, messages in enumerate(conversations):
            if index in done:
                continue
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise KeyboardInterrupt
            prompt = messages[-1]["content"]
            self.asked.append((prompt, sampling, samples))
            texts = [self.say(prompt, sample) for sample in range(samples)]
            yield index, [Generated(text, "stop", {"[[A]]": 2.0, "[[B]]": -2.0}.get(text)) for text in texts]

    def evaluate(self, output: str = "out", **more: Any) -> dict[str, Any]:
        given = {"pairs": str(self.folder / "one.jsonl"), "templates": self.templates, "max_new_tokens": 4, **more}
        evaluate(model=self.model, output=str(self.folder / output), **given)
        return json.loads((self.folder / output / "results.json").read_text())


@pytest.fixture
def judge(tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch) -> Judge:
    found = Judge(tmp_path, llama)
    monkeypatch.setattr(LocalEngine, "answer", lambda self, *args, **more: found.answer(*args, **more))
    return found


def right(prompt: str) -> str:
    """The verdict of a judge that is always right: answers that are right say yes."""
    return "[[A]]" if "A: yes" in prompt else "[[B]]"


def mostly_right(prompt: str, sample: int) -> str:
    """Two votes of three are right, but about question 3 all three differ."""
    if "question 3" in prompt:
        return ["[[A]]", "[[B]]", "no idea"][sample]
    wrong = {"[[A]]": "[[B]]", "[[B]]": "[[A]]"}[right(prompt)]
    return wrong if sample == 1 else right(prompt)


VOTES = {"votes": 3, "temperature": 0.7, "top_p": 0.9}


def test_the_majority_of_the_votes_counts(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    judge.say = mostly_right
    found = judge.evaluate(**VOTES)
    assert {(sampling, samples) for _, sampling, samples in judge.asked} == {(Sampling(4, 0.7, 0.9), 3)}
    assert {name: found["settings"][name] for name in VOTES} == VOTES
    saved = read_results(judge.folder / "out").sets["one"]
    assert [one.sample for one in saved.judgments] == [0, 1, 2] * 8
    assert found["sets"]["one"]["accuracy"]["value"] == 6 / 8
    assert found["sets"]["one"]["accuracy"]["n"] == 8
    again = PAIRS.estimates(saved.items, saved.judgments)
    assert found["sets"]["one"] == {name: one.to_dict() for name, one in again.items()}
    shares = vote_shares(saved.items, saved.judgments)
    assert found["votes"]["one"] == {name: one.to_dict() for name, one in shares.items()}
    # Six majorities of two votes of three; the other two prompts are undecided.
    of_votes = found["calibration"]["one"]
    assert (of_votes["confidence_from"], of_votes["n"], of_votes["unknown"]) == ("votes", 6, 2)
    assert (of_votes["confidence"]["value"], of_votes["ece"]["value"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    printed = capsys.readouterr().out
    assert "one: 24 votes on 8 prompts" in printed and "2 prompts have no majority" in printed
    assert "one: mean confidence 66.7% and accuracy 100.0% of 6 judgments (2 more have no confidence)" in printed


def test_votes_after_a_kill_are_not_asked_twice(judge: Judge) -> None:
    judge.say = mostly_right
    unbroken = judge.evaluate("unbroken", **VOTES)
    whole = list(judge.asked)
    judge.asked.clear()
    judge.fails_after = 5
    with pytest.raises(KeyboardInterrupt):
        judge.evaluate(**VOTES)
    judge.fails_after = None
    assert judge.evaluate(**VOTES) == unbroken
    assert judge.asked == whole
    with pytest.raises(UserError, match=r"settings\.json: votes: found 3, expected 5"):
        judge.evaluate(**{**VOTES, "votes": 5})
    assert judge.asked == whole


def test_votes_made_elsewhere_are_read(judge: Judge) -> None:
    judge.say = mostly_right
    before = judge.evaluate(**VOTES)
    judgments = str(judge.folder / "out/one.judgments.jsonl")
    evaluate(str(judge.folder / "copy"), pairs=str(judge.folder / "one.jsonl"), judgments=judgments)
    after = json.loads((judge.folder / "copy/results.json").read_text())
    for name in ("sets", "votes", "calibration"):
        assert after[name] == before[name]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"votes": 0}, "votes: found 0, expected 1 or more"),
        ({"votes": 5}, "votes: found 5 at temperature 0, expected 1, since greedy judgments are all the same"),
        ({"temperature": 0.7}, "temperature: found 0.7 with a single greedy judgment of each prompt, expected 0; set"),
        ({"top_p": 0.9}, "top_p: found 0.9 with a single greedy judgment of each prompt, expected 1; set --votes 5"),
        ({"votes": 5, "temperature": -1.0}, "temperature: found -1.0, expected 0 (greedy) or"),
        ({"judgments": "x.jsonl", **VOTES}, "has no meaning with judgments that were made elsewhere"),
        ({"against": "nowhere"}, "nowhere: found no results"),
        ({"against": "{folder}/out"}, "the folder of these results, expected that of another judge"),
    ],
)
def test_wrong_input_is_one_line(judge: Judge, settings: dict[str, Any], complaint: str) -> None:
    given = {
        name: value.format(folder=judge.folder) if name == "against" else value for name, value in settings.items()
    }
    with pytest.raises(UserError) as error:
        judge.evaluate(**given)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert judge.asked == [] and not (judge.folder / "out/settings.json").exists()


def test_two_judges_are_compared_also_after_the_fact(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    judge.say = lambda prompt, _: right(prompt)
    parent = judge.evaluate("parent")
    judge.say = lambda prompt, _: "[[A]]" if "question 2" in prompt else right(prompt)
    alone = judge.evaluate("child", dtype="bfloat16")
    assert "against" not in alone and "against" not in alone["settings"]
    asked = len(judge.asked)
    capsys.readouterr()
    found = judge.evaluate("child", dtype="bfloat16", against=str(judge.folder / "parent"))
    assert len(judge.asked) == asked, "it reads the journal"
    against = found.pop("against")
    assert found == alone
    assert (against["model"], against["folder"]) == (parent["model"], str(judge.folder / "parent"))
    assert against["settings"]["dtype"] == ["float32", "bfloat16"] and "seed" not in against["settings"]
    of_set = against["sets"]["one"]
    assert of_set["gains"]["accuracy"]["value"] == pytest.approx(-1 / 8)
    assert (of_set["flip_rate"]["value"], of_set["judgments"], of_set["left_out"]) == (1 / 8, 8, 0)
    assert of_set["mcnemar"] == {
        "judgments": {"only_this": 0, "only_other": 1, "p": 1},
        "both_orders": {"only_this": 0, "only_other": 1, "p": 1},
    }
    printed = capsys.readouterr().out
    assert f"compared with {judge.model} in {judge.folder}/parent" in printed
    assert "  dtype: float32 there, bfloat16 here" in printed
    assert "one: accuracy is lower than the other judge's: -12.5 points [" in printed
    assert "12.5% [0.0, 37.5] of 8 judgments have another verdict" in printed


def test_calibration_stands_beside_the_metrics(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    judge.say = lambda prompt, _: "no idea" if "question 3" in prompt else "[[A]]"
    found = judge.evaluate()["calibration"]["one"]
    assert (found["confidence_from"], found["n"], found["unknown"]) == ("log-probabilities", 6, 2)
    assert found["selective"]["0.5"]["value"] == found["accuracy"]["value"] == 0.5
    assert [one["n"] for one in found["bins"] if one["n"]] == [6]
    assert "one: mean confidence 88.1% and accuracy 50.0% of 6 judgments" in capsys.readouterr().out
    judge.say = lambda prompt, _: "no idea"
    assert "calibration" not in judge.evaluate("silent")

"""`judgelit judge`: pairs and answers in; judgments, verdicts and preferences out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair, swap_label
from judgelit.records.sources import FileSource
from judgelit.synthesis.label import label, main
from judgelit.synthesis.label_report import LabelReport
from tests.support import make_pair, short_templates


@pytest.fixture
def by_answer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A judge that prefers answers that begin with `good`, and otherwise says A. Returns the prompts asked."""
    asked: list[str] = []
    answer = LocalEngine.answer

    def speak(self: LocalEngine, conversations: Any, *args: Any, **more: Any) -> Any:
        for index, of_prompt in answer(self, conversations, *args, **more):
            asked.append(conversations[index][-1]["content"])
            yield index, [Generated("[[B]]" if "\nB: good" in asked[-1] else "[[A]]", "stop") for _ in of_prompt]

    monkeypatch.setattr(LocalEngine, "answer", speak)
    return asked


def run(folder: Path, model: str, pairs: Any, **more: Any) -> tuple[list[PreferenceExample], list[Judgment]]:
    write_judgments(folder, model, pairs, **more)
    judgments = [Judgment.from_dict(row, at) for at, row in read_rows(f"{folder}/out/judgments.jsonl")]
    return FileSource(f"{folder}/out/preferences.jsonl").read(PreferenceExample), judgments


def write_judgments(folder: Path, model: str, pairs: Any, **more: Any) -> None:
    settings = {"templates": short_templates(folder / "templates"), "max_new_tokens": 4, **more}
    label(str(folder / "out"), pairs, model=model, **settings)


def verdicts(folder: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(f"{folder}/out/verdicts.jsonl")]


def test_pairs_with_agreed_winners_become_preferences(
    tmp_path: Path, llama: str, by_answer: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # The labels are wrong where the judge has a preference: they play no part.
    pairs = [make_pair(1, "B", "bad", "good"), make_pair(2, "A", "good one", "bad"), make_pair(3, "A", "so", "la")]
    wrong = [PreferencePair(**{**vars(pair), "label": swap_label(pair.label)}) for pair in pairs]
    write_records(tmp_path / "pairs.jsonl", wrong)
    examples, judgments = run(tmp_path, llama, str(tmp_path / "pairs.jsonl"))
    assert [(example.chosen, example.rejected) for example in examples] == [("good", "bad"), ("good one", "bad")]
    assert [(j.pair_id, j.order) for j in judgments] == [(f"p{n}", order) for n in (1, 2, 3) for order in ("ab", "ba")]
    said = capsys.readouterr().out
    assert "2 of 3 pairs have the same winner in both orders" in said
    assert "2 preferences; left out: 1 different winners in the two orders" in said
    assert len(by_answer) == 6
    assert run(tmp_path, llama, str(tmp_path / "pairs.jsonl")) == (examples, judgments)
    assert len(by_answer) == 6, "all was in the journal"
    assert [(line["id"], line["verdict"], line["consistent"], line["confidence"]) for line in verdicts(tmp_path)] == [
        ("p1", "A", True, 1.0),
        ("p2", "A", True, 1.0),
        ("p3", "tie", False, None),
    ]
    assert [line["critique"] for line in verdicts(tmp_path)] == ["[[A]]"] * 3


def test_verdicts_alone_leave_no_preferences(tmp_path: Path, llama: str, by_answer: list[str]) -> None:
    write_records(tmp_path / "pairs.jsonl", [make_pair(1, "B", "bad", "good")])
    write_judgments(tmp_path, llama, str(tmp_path / "pairs.jsonl"), form="verdicts")
    assert {path.name for path in (tmp_path / "out").glob("*.jsonl")} == {"judgments.jsonl", "verdicts.jsonl"}
    run(tmp_path, llama, str(tmp_path / "pairs.jsonl"), form="preferences")
    assert len(by_answer) == 2, "the other form asks nothing again"


def test_one_order_and_votes(
    tmp_path: Path, llama: str, by_answer: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "pairs.jsonl", [make_pair(number, "B", "bad", "good") for number in range(8)])
    settings = {"both_orders": False, "votes": 3, "temperature": 0.5}
    examples, judgments = run(tmp_path, llama, str(tmp_path / "pairs.jsonl"), **settings)
    assert [example.chosen for example in examples] == ["good"] * 8 and len(by_answer) == 8
    assert len(judgments) == 24 and {judgment.order for judgment in judgments} == {"ab", "ba"}
    assert all(line["votes"] == {"A": 3, "B": 0, "tie": 0, "none": 0} for line in verdicts(tmp_path))
    assert "8 pairs judged, each in one order" in capsys.readouterr().out


def test_equal_votes_are_counted_by_order() -> None:
    report = LabelReport(both_orders=True, ranks=False, labelled=9, split=7)
    assert "7 orders of pairs have equal votes for several labels and count as a tie" in str(report)


def write_answers(path: Path, *rows: tuple[str, list[str]]) -> None:
    lines = [json.dumps({"id": name, "prompt": f"Question {name}", "answers": answers}) for name, answers in rows]
    path.write_text("\n".join(lines))


def rank(folder: Path, model: str, **more: Any) -> list[dict[str, Any]]:
    write_judgments(folder, model, None, answers=str(folder / "answers.jsonl"), **more)
    return verdicts(folder)


def test_answers_are_ranked(
    tmp_path: Path, llama: str, by_answer: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(
        tmp_path / "answers.jsonl",
        ("x", ["bad", "good", "bad "]),
        ("y", ["same", "same"]),
        ("z", ["bad", "worse", "", "good"]),
    )
    x, y, z = rank(tmp_path, llama)
    assert (x["best"], x["ranks"], x["answers"]) == (1, [2, 1, 2], ["bad", "good", "bad "])
    assert x["critique"] == "[[B]]" and x["confidence"] == 1.0 and x["judgments"] == 2
    assert (y["best"], y["ranks"], y["judgments"], y["critique"]) == (0, [1, 1], 0, None)
    assert z["best"] == 3 and z["ranks"] == [2, 2, None, 1] and z["judgments"] == 6 and len(by_answer) == 8
    said = capsys.readouterr().out
    assert "3 questions with answers ranked, 4 pairs judged" in said
    assert "2 answers equal to another one of their question, judged once; 1 blank answers, not judged" in said
    assert "1 questions without two different answers, not judged" in said
    assert "2 preferences; left out: 1 equal or blank answers" in said
    examples = FileSource(f"{tmp_path}/out/preferences.jsonl").read(PreferenceExample)
    assert [(one.chosen, one.rejected, one.meta["pair_id"]) for one in examples] == [
        ("good", "bad", "x"),
        ("good", "bad", "z"),
    ]
    rank(tmp_path, llama, preferences="all")
    examples = FileSource(f"{tmp_path}/out/preferences.jsonl").read(PreferenceExample)
    assert [one.meta["pair_id"] for one in examples] == ["x/0-1", "z/0-3", "z/1-3"] and len(by_answer) == 8


def test_a_swiss_tournament_asks_round_by_round_and_continues(
    tmp_path: Path, llama: str, by_answer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [f"{'good' if number == 5 else 'bad'} {number}" for number in range(8)]
    write_answers(tmp_path / "answers.jsonl", ("x", answers), ("y", answers[::-1]), ("z", answers[:5]))
    whole = rank(tmp_path, llama, tournament="swiss", rounds=2)
    assert [line["best"] for line in whole[:2]] == [5, 2] and len(by_answer) == 2 * 2 * (4 + 4 + 2)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")}
    shutil.rmtree(tmp_path / "out")
    by_answer.clear()
    speak = LocalEngine.answer

    def killed(self: LocalEngine, *args: Any, **more: Any) -> Any:
        for number, answered in enumerate(speak(self, *args, **more)):
            if number == 13:
                raise KeyboardInterrupt
            yield answered

    monkeypatch.setattr(LocalEngine, "answer", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rank(tmp_path, llama, tournament="swiss", rounds=2)
    monkeypatch.setattr(LocalEngine, "answer", speak)
    assert rank(tmp_path, llama, tournament="swiss", rounds=2) == whole
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")} == files


def test_lines_are_there_before_the_end_and_the_files_do_not_depend_on_kills(
    tmp_path: Path, llama: str, by_answer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [make_pair(number, "B", "bad", "good" * (9 - number)) for number in range(9)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    speak, path = LocalEngine.answer, str(tmp_path / "pairs.jsonl")
    out = tmp_path / "out"

    def killed(self: LocalEngine, *args: Any, **more: Any) -> Any:
        for number, answered in enumerate(speak(self, *args, **more)):
            if number == 7:
                raise KeyboardInterrupt
            yield answered

    monkeypatch.setattr(LocalEngine, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        write_judgments(tmp_path, llama, path, batch_size=3)
    grown = [json.loads(line)["id"] for line in (out / "verdicts.partial.jsonl").read_text().splitlines()]
    assert 0 < len(grown) < 9 and not (out / "verdicts.jsonl").exists()
    monkeypatch.setattr(LocalEngine, "answer", speak)
    write_judgments(tmp_path, llama, path, batch_size=3)
    files = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    assert [line["id"] for line in verdicts(tmp_path)] == [pair.id for pair in pairs] and len(files) == 3
    shutil.rmtree(out)
    write_judgments(tmp_path, llama, path, batch_size=3)
    assert {path.name: path.read_bytes() for path in out.glob("*.jsonl")} == files


def test_many_pairs_are_asked_in_parts(
    tmp_path: Path, llama: str, by_answer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judgelit.synthesis.pair_judge.AT_ONCE", 4)
    monkeypatch.setattr("judgelit.synthesis.labelling.PAIRS_OF_A_ROUND", 4)
    write_records(tmp_path / "pairs.jsonl", [make_pair(number, "B", "bad", "good") for number in range(10)])
    examples, judgments = run(tmp_path, llama, str(tmp_path / "pairs.jsonl"))
    assert len(examples) == 10 and [one.pair_id for one in judgments[::2]] == [f"p{number}" for number in range(10)]
    (tmp_path / "more").mkdir()
    write_answers(tmp_path / "more/answers.jsonl", *((str(n), ["bad", f"good {n}", "no"]) for n in range(5)))
    assert [line["best"] for line in rank(tmp_path / "more", llama)] == [1] * 5


def test_judgments_of_other_pairs_or_settings_are_not_overwritten(
    tmp_path: Path, llama: str, by_answer: list[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    write_records(path, [make_pair(1, "B", "bad", "good")])
    before = run(tmp_path, llama, str(path))
    with pytest.raises(UserError, match="max_new_tokens: found 4, expected 5; choose another folder with --output"):
        run(tmp_path, llama, str(path), max_new_tokens=5)
    write_records(path, [make_pair(2, "B", "bad", "good")])
    with pytest.raises(UserError, match=r"pairs: found .* choose another folder with --output"):
        run(tmp_path, llama, str(path))
    write_records(path, [make_pair(1, "B", "bad", "good")])
    assert run(tmp_path, llama, str(path)) == before


def test_limit_takes_the_first_pairs(tmp_path: Path, llama: str, by_answer: list[str]) -> None:
    pairs = [make_pair(number, "B", "bad", "good") for number in range(3)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    _, judgments = run(tmp_path, llama, str(tmp_path / "pairs.jsonl"), limit=2)
    assert {judgment.pair_id for judgment in judgments} == {"p0", "p1"}
    with pytest.raises(UserError, match="limit: found 0, expected 1 or more"):
        run(tmp_path, llama, str(tmp_path / "pairs.jsonl"), limit=0)


@pytest.mark.parametrize("spoken", [0, 1])
def test_missing_verdicts_are_counted(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoken: int
) -> None:
    def answer(self: LocalEngine, conversations: Any, *args: Any, **more: Any) -> Any:
        texts = ["[[A]]" if index < spoken else "no idea" for index in range(len(conversations))]
        yield from ((index, [Generated(text, "stop")]) for index, text in enumerate(texts))

    monkeypatch.setattr(LocalEngine, "answer", answer)
    write_records(tmp_path / "pairs.jsonl", [make_pair(number) for number in range(2)])
    if spoken:
        write_judgments(tmp_path, llama, str(tmp_path / "pairs.jsonl"))
    else:
        with pytest.raises(UserError, match="found no verdict in any of 4 judgments"):
            write_judgments(tmp_path, llama, str(tmp_path / "pairs.jsonl"))
    assert f"{4 - spoken} of 4 judgments have no verdict" in capsys.readouterr().out
    assert len((tmp_path / "out/judgments.jsonl").read_text().splitlines()) == 4


ANSWERS = [
    {"id": "1", "question": "Q", "answer_a": "bad", "answer_b": "good"},
    {"question": "Q", "answer_a": "bad", "answer_b": "good", "label": None},
    {"question": "Q", "answer_a": "bad", "answer_b": "good", "label": ""},
    {"prompt": "Q", "response_a": "bad", "response_b": "good"},
    {"prompt": [{"role": "user", "content": "Q"}], "answer_a": "bad", "answer_b": "good"},
    {"instruction": "Q", "output_1": "bad", "output_2": "good"},
    {"instruction": "Q", "response1": "bad", "response2": "good"},
    {"prompt": "Q", "response 1": "bad", "response 2": "good"},
    {
        "conversation_a": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "bad"}],
        "conversation_b": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
    },
]


@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: "+".join(row))
def test_pairs_need_no_label(tmp_path: Path, llama: str, by_answer: list[str], row: dict[str, Any]) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    ((example,), _) = run(tmp_path, llama, str(tmp_path / "pairs.jsonl"))
    assert (example.chosen, example.rejected) == ("good", "bad")
    assert example.messages == ({"role": "user", "content": "Q"},)


@pytest.mark.parametrize(
    ("row", "more", "complaint"),
    [
        ({"question": "Q", "answer_a": "x"}, {}, "pairs.jsonl:1: "),
        ({"question": "Q", "answer_a": "x", "answer_b": 3, "label": "C"}, {}, "field 'label'"),
        (ANSWERS[0], {"max_new_tokens": 2000}, "less than the context of 1024"),
        ({**ANSWERS[0], "question": "Q" * 4000}, {}, "pairs: no pair fits"),
        (ANSWERS[0], {"votes": 0, "temperature": 1.0}, "votes: found 0, expected 1 or more"),
        (ANSWERS[0], {"votes": 3}, "votes: found 3 at temperature 0, expected 1"),
        (ANSWERS[0], {"tournament": "swiss"}, "tournament: found swiss for pairs"),
        (ANSWERS[0], {"rounds": 2}, "rounds: found 2, expected none"),
        (ANSWERS[0], {"answers": "answers.jsonl"}, "answers: found pairs or a source beside it"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, llama: str, row: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        run(tmp_path, llama, str(tmp_path / "pairs.jsonl"), **more)
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"prompt": "Q", "answers": ["one", "one "]}, {"prompt": "R", "answers": ["", "x"]}], "no question with two"),
        ([{"prompt": "Q", "answers": []}], "field 'answers': found [], expected a list of texts, one or more"),
        ([{"prompt": "Q", "answers": "text"}], "found 'prompt', 'answers', expected a question with a list of answers"),
        ([{"id": "x", "prompt": "Q", "answers": ["a", "b"]}] * 2, "answers id 'x': found two questions with this id"),
        ([ANSWERS[0]], "expected a question with a list of answers"),
        ([{"prompt": "Q" * 4000, "answers": ["a", "b"]}], "answers: no pair fits"),
    ],
)
def test_wrong_answers_are_one_line(
    tmp_path: Path, llama: str, by_answer: list[str], rows: list[dict[str, Any]], complaint: str
) -> None:
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        rank(tmp_path, llama)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    # The folder is free for other settings.
    write_answers(tmp_path / "answers.jsonl", ("x", ["bad", "good"]))
    assert rank(tmp_path, llama, max_new_tokens=5)[0]["best"] == 1


def test_from_the_command_line(tmp_path: Path, llama: str, by_answer: list[str]) -> None:
    short_templates(tmp_path / "templates")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ANSWERS[0]) + "\n")
    main(
        [
            f"--model={llama}",
            f"--pairs={tmp_path}/pairs.jsonl",
            f"--output={tmp_path}/out",
            "--max_new_tokens=4",
            "--as=preferences",
            "--templates.names=[short]",
            f"--templates.folder={tmp_path}/templates",
        ]
    )
    assert len(FileSource(f"{tmp_path}/out/preferences.jsonl").read(PreferenceExample)) == 1
    with pytest.raises(UserError, match=r"^as: found 'both', expected verdicts or preferences$"):
        main([f"--model={llama}", "--output=x", "--pairs=y.jsonl", "--as=both"])


def test_a_public_source_is_labelled_without_its_labels(tmp_path: Path, llama: str, by_answer: list[str]) -> None:
    row = {"instruction": "q", "output_1": "good 1", "output_2": "2", "label": 2, "id": "o"}
    (tmp_path / "native.jsonl").write_text(json.dumps(row) + "\n")
    short_templates(tmp_path / "templates")
    files = [f"--pairs={tmp_path}/native.jsonl", f"--output={tmp_path}/out", f"--templates.folder={tmp_path}/templates"]
    main([f"--model={llama}", "--source=offsetbias", *files, "--templates.names=[short]", "--max_new_tokens=4"])
    (example,) = FileSource(f"{tmp_path}/out/preferences.jsonl").read(PreferenceExample)
    assert (example.chosen, example.rejected, len(by_answer)) == ("good 1", "2", 2)

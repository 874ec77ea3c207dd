import json
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, Label, PreferenceExample, PreferencePair, swap_label
from judgelit.records.sources import FileSource
from judgelit.synthesis.label import agreed, label, main
from tests.support import make_judgment, make_pair, short_templates


def winners(pair: PreferencePair, ab: Label | None, ba: Label | None) -> list[str]:
    found = agreed(pair, [make_judgment(pair.id, "ab", ab), make_judgment(pair.id, "ba", ba)])
    return [example.chosen for example in found]


def test_a_preference_needs_the_same_winner_in_both_orders() -> None:
    pair = make_pair(1, "A", "one", "two")
    assert winners(pair, "A", "B") == ["one"]
    assert winners(pair, "B", "A") == ["two"]
    for verdicts in [("A", "A"), ("B", "B"), ("tie", "tie"), (None, None), ("A", None), (None, "B"), ("A", "tie")]:
        assert winners(pair, *verdicts) == [], verdicts
    assert agreed(pair, [make_judgment("p1", "ab", "A")]) == [], "one order is not both"
    assert agreed(pair, []) == []
    assert winners(make_pair(1, "A", "one", "one"), "A", "B") == []
    assert winners(make_pair(1, "A", "one", " "), "A", "B") == [], "no reader would take it"


def test_a_preference_has_the_prompt_of_the_policy() -> None:
    turns = ({"role": "system", "content": "be kind"},)
    pair = PreferencePair("p", "why?", "one", "two", "A", context=turns)
    (example,) = agreed(pair, [make_judgment("p", "ab", "B"), make_judgment("p", "ba", "A")])
    assert example.messages == (*turns, {"role": "user", "content": "why?"})
    assert (example.chosen, example.rejected) == ("two", "one")
    assert PreferenceExample.from_dict(example.to_dict(), "here") == example
    assert example.group == pair.question_key


@pytest.fixture
def by_answer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A judge that prefers answers that begin with `good`, and otherwise says A. Returns the prompts asked."""
    asked: list[str] = []
    answer = LocalEngine.answer

    def speak(self: LocalEngine, conversations: Any, *args: Any, **more: Any) -> Any:
        for index, _ in answer(self, conversations, *args, **more):
            asked.append(conversations[index][-1]["content"])
            yield index, [Generated("[[B]]" if "\nB: good" in asked[-1] else "[[A]]", "stop")]

    monkeypatch.setattr(LocalEngine, "answer", speak)
    return asked


def run(folder: Path, model: str, pairs: Any, **more: Any) -> tuple[list[PreferenceExample], list[Judgment]]:
    write_judgments(folder, model, pairs, **more)
    judgments = [Judgment.from_dict(row, at) for at, row in read_rows(f"{folder}/out/judgments.jsonl")]
    return FileSource(f"{folder}/out/preferences.jsonl").read(PreferenceExample), judgments


def write_judgments(folder: Path, model: str, pairs: Any, **more: Any) -> None:
    settings = {"templates": short_templates(folder / "templates"), "max_new_tokens": 4, **more}
    label(str(folder / "out"), pairs, model=model, **settings)


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
    assert "2 of 3 pairs have the same winner in both orders" in capsys.readouterr().out
    assert len(by_answer) == 6
    assert run(tmp_path, llama, str(tmp_path / "pairs.jsonl")) == (examples, judgments)
    assert len(by_answer) == 6, "all was in the journal"


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
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, llama: str, row: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        run(tmp_path, llama, str(tmp_path / "pairs.jsonl"), **more)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_from_the_command_line(tmp_path: Path, llama: str, by_answer: list[str]) -> None:
    short_templates(tmp_path / "templates")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ANSWERS[0]) + "\n")
    main(
        [
            f"--model={llama}",
            f"--pairs={tmp_path}/pairs.jsonl",
            f"--output={tmp_path}/out",
            "--max_new_tokens=4",
            "--templates.names=[short]",
            f"--templates.folder={tmp_path}/templates",
        ]
    )
    assert len(FileSource(f"{tmp_path}/out/preferences.jsonl").read(PreferenceExample)) == 1


def test_a_public_source_is_labelled_without_its_labels(tmp_path: Path, llama: str, by_answer: list[str]) -> None:
    row = {"instruction": "q", "output_1": "good 1", "output_2": "2", "label": 2, "id": "o"}
    (tmp_path / "native.jsonl").write_text(json.dumps(row) + "\n")
    short_templates(tmp_path / "templates")
    files = [f"--pairs={tmp_path}/native.jsonl", f"--output={tmp_path}/out", f"--templates.folder={tmp_path}/templates"]
    main([f"--model={llama}", "--source=offsetbias", *files, "--templates.names=[short]", "--max_new_tokens=4"])
    (example,) = FileSource(f"{tmp_path}/out/preferences.jsonl").read(PreferenceExample)
    assert (example.chosen, example.rejected, len(by_answer)) == ("good 1", "2", 2)

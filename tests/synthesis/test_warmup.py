import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.judging.prompts import Templates, drawn_order
from judgelit.judging.verdict import parse
from judgelit.records.files import write_records
from judgelit.records.records import PreferencePair
from judgelit.synthesis.tasks.pairs import TaskPairs
from judgelit.synthesis.teachers import EngineTeacher, TaskTeacher, Teacher
from judgelit.synthesis.warmup import Warmup, synthesize_warmup, write_warmup_card
from tests.support import ScriptedEngine, make_pair, read_card, short_templates


class Says(Teacher):
    """A teacher whose text is a function of the prompt."""

    name = "says"

    def __init__(self, say: Callable[[Any], str]) -> None:
        self.say = say

    def judgments(self, prompts, templates, journal, seed):
        for index in reversed(range(len(prompts))):
            yield index, Generated(self.say(prompts[index]), "stop")


RIGHT = Says(lambda prompt: f" It is [[{prompt.pair.label}]]\n")


def some_pairs(count: int = 60) -> list[PreferencePair]:
    """Pairs whose better answer is longer in two of three, and A in three of four."""
    return [
        make_pair(n, "B" if n % 4 == 3 else "A", "right" if n % 3 else "ok", "nope") for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def make(chatml: ChatTokenizer, tmp_path: Path) -> Callable[..., Any]:
    templates = short_templates(tmp_path / "templates", {"one": "careful", "two": "brief"})

    def synthesize(
        pairs: list[PreferencePair],
        teacher: Teacher = RIGHT,
        templates: Templates = templates,
        max_prompt_tokens: int = 400,
        seed: int = 0,
        **settings: Any,
    ):
        return synthesize_warmup(
            pairs,
            teacher,
            templates,
            chatml,
            tmp_path / "journal.sqlite",
            max_prompt_tokens=max_prompt_tokens,
            settings=Warmup(**settings),
            seed=seed,
        )

    return synthesize


def test_kept_judgments_are_right_and_record_their_origin(make):
    pairs = {pair.id: pair for pair in some_pairs()}
    examples, _ = make(list(pairs.values()), Says(lambda p: f"[[{'A' if int(p.pair.id[1:]) % 5 else p.pair.label}]]"))
    assert examples
    for example in examples:
        pair = pairs[example.pair_id].in_order(example.meta["order"])
        assert parse(example.completion) == pair.label == example.meta["verdict"]
        assert f"A: {pair.answer_a}\nB: {pair.answer_b}" in example.messages[-1]["content"]
        assert example.meta["teacher"] == "says"
        assert example.meta["order"] == drawn_order(pair.id, 0)
        assert example.group == pair.question_key


def test_labels_and_longer_answers_are_exactly_balanced(make):
    pairs = {pair.id: pair for pair in some_pairs()}
    examples, report = make(list(pairs.values()))
    cells = Counter()
    for example in examples:
        pair = pairs[example.pair_id].in_order(example.meta["order"])
        better, worse = (pair.answer_a, pair.answer_b) if pair.label == "A" else (pair.answer_b, pair.answer_a)
        cells[pair.label, len(better) > len(worse)] += 1
    assert cells["A", True] == cells["B", False] > 0 and cells["A", False] == cells["B", True] > 0
    assert abs(cells["A", True] - cells["A", False]) <= 1
    assert report.kept == len(examples) == len({example.pair_id for example in examples}) >= 20


def test_answers_of_equal_length_are_balanced_apart(make):
    examples, report = make([make_pair(n, "A", "abc", "xyz") for n in range(40)])
    labels = Counter(example.meta["verdict"] for example in examples)
    assert labels["A"] == labels["B"] >= 10
    assert report.dropped["for balance of A and B"] == 40 - len(examples)


def test_each_balance_can_be_switched_off_and_says_what_it_dropped(make):
    def count(examples):
        return Counter(example.meta["verdict"] for example in examples)

    neither, report = make(some_pairs(), balance_labels=False, balance_length=False)
    assert (report.kept, sum(report.dropped.values())) == (60, 0)
    labels, of_labels = make(some_pairs(), balance_length=False)
    assert count(labels)["A"] == count(labels)["B"]
    assert of_labels.dropped["for balance of length"] == 0
    assert of_labels.dropped["for balance of A and B"] == 60 - len(labels)
    length, of_length = make(some_pairs(), balance_labels=False)
    # The better answer is longer in 40 of 60 pairs.
    assert (len(length), of_length.dropped["for balance of length"]) == (40, 20)
    assert of_length.dropped["for balance of A and B"] == 0
    both, report = make(some_pairs())
    assert report.dropped["for balance of A and B"] == of_labels.dropped["for balance of A and B"]
    assert len(both) == 60 - sum(report.dropped.values())
    assert "for balance of length" in str(report)
    assert len(neither) > len(labels) > len(both)


def test_each_pair_is_kept_or_counted(make):
    endless = [make_pair(n, question=f"why {n}? " * 200) for n in range(200, 203)]
    ties = [make_pair(n, "tie") for n in range(300, 304)]

    def say(prompt):
        number = int(prompt.pair.id[1:])
        wrong = "B" if prompt.pair.label == "A" else "A"
        return {0: "no idea", 1: f"[[{wrong}]]"}.get(number % 10, f"[[{prompt.pair.label}]]")

    examples, report = make([*some_pairs(), *endless, *ties], Says(say))
    assert report.pairs == 67 and report.kept == len(examples)
    assert {k: report.dropped[k] for k in ("ties", "too long", "without verdict", "wrong")} == {
        "ties": 4,
        "too long": 3,
        "without verdict": 6,
        "wrong": 6,
    }
    assert report.kept + sum(report.dropped.values()) == report.pairs
    assert f"67 pairs: {report.kept} judgments kept; dropped: 4 ties, 3 too long" in str(report)
    assert not {int(example.pair_id[1:]) % 10 for example in examples} & {0, 1}


def test_with_both_orders_a_teacher_must_be_right_in_both(make):
    # Right in the drawn order of all pairs; in the other order of pairs with even numbers only.
    def say(prompt):
        drawn = prompt.order == drawn_order(prompt.pair.id, 0)
        right = drawn or int(prompt.pair.id[1:]) % 2 == 0
        return f"[[{prompt.pair.label if right else 'tie'}]]"

    pairs = some_pairs()
    lenient, _ = make(pairs, Says(say))
    strict, report = make(pairs, Says(say), both_orders=True)
    assert any(int(example.pair_id[1:]) % 2 for example in lenient)
    assert not any(int(example.pair_id[1:]) % 2 for example in strict)
    assert report.dropped["wrong in the other order"] == 30
    assert report.kept + sum(report.dropped.values()) == report.pairs
    assert all(example.meta["order"] == drawn_order(example.pair_id, 0) for example in strict)


def test_judgments_that_were_cut_are_counted_apart(make):
    class Cut(Says):
        def judgments(self, prompts, templates, journal, seed):
            for index, answer in super().judgments(prompts, templates, journal, seed):
                is_cut = int(prompts[index].pair.id[1:]) < 20
                yield index, replace(answer, finish="length" if is_cut else "stop", prompt_tokens=7, new_tokens=3)

    examples, report = make(some_pairs(), Cut(RIGHT.say))
    assert report.dropped["cut by the limit of tokens"] == 20 and "20 cut by the limit of tokens" in str(report)
    assert all(int(example.pair_id[1:]) >= 20 for example in examples)
    assert report.cost == {"judge_prompts": 60, "prompt_tokens": 420, "new_tokens": 180}


def test_questions_of_evaluation_sets_and_near_duplicates_are_not_asked(make, tmp_path):
    long = "write a short poem about the sea in winter that a child of five can learn by heart in a day"
    pairs = [
        *some_pairs(),
        make_pair(90, question=f"Please {long}"),
        make_pair(91, question=f"please, {long}!", right="yes!"),
        make_pair(92, question="question 1?", right="right", wrong="nope"),
    ]
    asked = []
    held = [{"question": f"question {n} ?"} for n in (2, 3, 777)]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
    teacher = Says(lambda prompt: asked.append(prompt.pair.id) or f"[[{prompt.pair.label}]]")
    examples, report = make(pairs, teacher, decontaminate={"held": str(tmp_path / "held.jsonl")})
    assert report.decontamination == {"held": {"questions": 3, "pairs": 2}}
    assert {name: report.dropped[name] for name in list(report.dropped)[1:4]} == {
        "in evaluation sets": 2,
        "repeated": 1,
        "with a question almost like another": 1,
    }
    assert "2 in held" in str(report)
    assert not {"p2", "p3"} & set(asked) and len({"p90", "p91"} & set(asked)) == len({"p1", "p92"} & set(asked)) == 1
    assert report.kept + sum(report.dropped.values()) == report.pairs == 63
    shuffled, again = make(pairs[::-1], RIGHT, decontaminate=str(tmp_path / "held.jsonl"))
    assert {e.pair_id for e in shuffled} == {e.pair_id for e in examples} and again.dropped == report.dropped
    everything, report = make(pairs, near_duplicates=None, balance_labels=False, balance_length=False)
    assert len(everything) == 63


def test_prompts_vary_and_can_be_plain(make):
    templates = Templates(names=["en-*", "zh-*"])
    varied, _ = make(some_pairs(), templates=templates, max_prompt_tokens=4000)
    plain, _ = make(some_pairs(), templates=templates, max_prompt_tokens=4000, vary=False)
    loaded = templates.load()
    assert {e.pair_id for e in varied} == {e.pair_id for e in plain}
    assert all(e.meta["role"] == loaded[e.meta["template"]].role for e in plain)
    assert sum(e.meta["role"] != loaded[e.meta["template"]].role for e in varied) > len(varied) / 2
    assert {e.meta["language"] for e in varied} == {"en", "zh"}
    assert all(one.completion == other.completion for one, other in zip(varied, plain, strict=True))


def test_every_number_of_the_card_follows_from_the_data_file(make, chatml, tmp_path):
    pairs = [make_pair(n, "AB"[n % 2], "right" * (1 + n % 3), "nope" * (1 + n % 2)) for n in range(200)]
    examples, report = make(pairs, max_prompt_tokens=900, verdict_only=0.2, reconstruction=0.1)
    kinds = report.kinds
    assert f"{kinds['verdict_only']} as the verdict alone, {kinds['reconstruction']} as a reconstruc" in str(report)
    write_records(tmp_path / "sft.jsonl", examples)
    card = tmp_path / "card.md"
    write_warmup_card(card, examples, report, chatml, "chatml", {"seed": 0})
    content = read_card(card)
    # From here on only the files are used.
    rows = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    data, metas = content["data"], [row["meta"] for row in rows]
    assert data["examples"] == len(rows) == content["pairs"]["kept"]
    assert data["pairs"] == len({row["pair_id"] for row in rows})
    for name in ("kind", "verdict", "order", "language", "template", "role", "criteria", "format", "teacher"):
        assert data[name] == dict(Counter(meta[name] for meta in metas if name in meta))
    assert data["verdict"]["A"] == data["verdict"]["B"]
    longer = Counter(
        (m["better_characters"] > m["worse_characters"]) - (m["better_characters"] < m["worse_characters"])
        for m in metas
    )
    assert data["longer_answer"] == {"better": longer[1], "worse": longer[-1], "equal": longer[0], "share": 0.5}
    assert data["tokens"]["prompt"]["sum"] == sum(len(chatml.prompt_ids(row["prompt"])) for row in rows)
    lengths = [len(chatml.text_ids(row["completion"][0]["content"])) for row in rows]
    assert data["tokens"]["completion"]["mean"] == round(sum(lengths) / len(lengths), 1)
    assert content["pairs"]["read"] == data["examples"] + sum(content["dropped"].values()) == 200
    by_id = {pair.id: pair for pair in pairs}
    for row in rows:
        pair = by_id[row["pair_id"]].in_order(row["meta"]["order"])
        assert row["meta"]["verdict"] == pair.label


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"verdict_only": 1.5}, "verdict_only: found 1.5, expected a share, 0 to 1"),
        ({"reconstruction": float("nan")}, "reconstruction: found nan"),
        ({"verdict_only": 0.6, "reconstruction": 0.6}, "expected at most 1 together"),
        ({"near_duplicates": 0.0}, "near_duplicates: found 0.0, expected above 0"),
        ({"rewrites": 0}, "rewrites: found 0, expected 1 or more"),
    ],
)
def test_wrong_settings_are_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        Warmup(**settings)


def test_the_seed_decides(make):
    assert make(some_pairs()) == make(some_pairs())
    assert make(some_pairs(), seed=1)[0] != make(some_pairs())[0]


def test_an_empty_set_is_a_one_line_error(make):
    with pytest.raises(
        UserError, match=r"no judgment of says was kept, of 60 pairs \(\d+ [^{}]*without verdict[^{}]*\)$"
    ) as error:
        make(some_pairs(), Says(lambda prompt: "no idea"))
    assert "\n" not in str(error.value)
    long = [make_pair(n, question=f"why {n}? " * 200) for n in range(3)]
    with pytest.raises(UserError, match=r"of 3 pairs \(3 too long\); a prompt may have \d+ tokens, .*--tokenizer"):
        make(long)


def test_pairs_with_shortened_answers_are_counted(make):
    pairs = [make_pair(n, "AB"[n % 2], right="yes " + "x" * 2000 * (n < 5)) for n in range(20)]
    _, report = make(pairs, balance_labels=False, balance_length=False)
    assert report.shortened == 5 and "; 5 pairs asked with shortened answers" in str(report)


def test_a_try_that_asks_nothing_leaves_the_journal_open_for_other_settings(make, chatml, monkeypatch):
    engine = ScriptedEngine(lambda prompt, sample: "[[A]]", tokenizer=chatml)
    monkeypatch.setattr("judgelit.synthesis.teachers.load_engine", lambda spec: engine)
    pairs = [make_pair(n, "AB"[n % 2]) for n in range(20)]
    with pytest.raises(UserError, match="20 too long"):
        make(pairs, EngineTeacher(model="T", max_new_tokens=16), max_prompt_tokens=4)
    examples, _ = make(pairs, EngineTeacher(model="T", max_new_tokens=32), balance_labels=False, balance_length=False)
    assert examples and engine.asked


def test_glances_are_kept_if_they_happen_to_be_right(make):
    pairs = TaskPairs(kinds=["sorting", "counting"], difficulties=[1], count=200).read(PreferencePair)
    careful, _ = make(pairs, TaskTeacher(), max_prompt_tokens=1000)
    hurried, report = make(pairs, TaskTeacher(glance_rate=1.0), max_prompt_tokens=1000)
    glances = {id: e.completion for e in hurried if "glance" in e.completion for id in [e.pair_id]}
    assert all("glance" not in example.completion for example in careful)
    assert {e.meta["template"] for e in hurried if e.pair_id in glances} == {"two"}
    assert all("glance" in example.completion for example in hurried if example.meta["template"] == "two")
    brief = sum(example.meta["template"] == "two" for example in careful)
    assert 0.25 * brief < report.dropped["wrong"] < 0.75 * 200, "a coin is wrong half of the time"
    assert all(parse(example.completion) == example.meta["verdict"] for example in hurried)

import datetime
import decimal
import json
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.files import write_records
from judgelit.records.public_sources.source import PublicSource
from judgelit.records.records import AnswerSet, PreferenceExample, PreferencePair, SFTExample
from judgelit.records.sources import FileSource, Mixture, Source, as_sources, split_by_group

ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refusal(path: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        FileSource(path, **options).read(PreferencePair)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Reading.


def test_each_row_is_read_in_its_own_form(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}], "completion": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
    ]
    found = FileSource(write_rows(tmp_path / "a.jsonl", rows)).read(SFTExample)
    assert [(example.messages[0]["content"], example.completion) for example in found] == [("q", "a")] * 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_every_record_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    turn = {"role": "user", "content": "q"}
    pairs = [PreferencePair("1", "q", "a", "b", "B", context=(turn,)), PreferencePair("1", "q", "c", "a", "tie")]
    write_records(tmp_path / name, pairs)
    assert FileSource(str(tmp_path / name)).read(PreferencePair) == pairs
    examples = [SFTExample((turn,), "x", "p", {"a": 1}), SFTExample((turn,), "y", meta={"b": [None, {"c": "d"}]})]
    write_records(tmp_path / name, examples)
    assert FileSource(str(tmp_path / name)).read(SFTExample) == examples
    preferences = [PreferenceExample((turn,), "x", "", {"question": "k"}), PreferenceExample((turn,), "x", "y")]
    write_records(tmp_path / name, preferences)
    assert FileSource(str(tmp_path / name)).read(PreferenceExample) == preferences
    sets = [
        AnswerSet("1", "Human: q\n\nAssistant: a\n\nHuman: r", ("a", "", "a"), (turn,), {"ranks": [1, 2, 1]}),
        AnswerSet("2", "q", ("a", "b"), right=(1,), category="c", subset="s", source="o"),
    ]
    write_records(tmp_path / name, sets)
    assert FileSource(str(tmp_path / name)).read(AnswerSet) == sets


def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [ROW, {**ROW, "rejected": "a"}])
    assert refusal(path) == f"{path}:2: fields 'chosen' and 'rejected' are equal; expected two different answers"
    assert len(FileSource(path, limit=1).read(PreferencePair)) == 1


def test_made_ids_are_unique_and_stay_the_same_if_the_folder_is_moved(tmp_path: Path) -> None:
    ids = []
    for root in ("here", "there"):
        for part in ("x", "y"):
            write_rows(tmp_path / root / part / "data.jsonl", [ROW, ROW])
        ids.append([pair.id for pair in FileSource(f"{tmp_path}/{root}/**/*.jsonl").read(PreferencePair)])
    assert ids[0] == ids[1] and len(set(ids[0])) == 4
    assert re.fullmatch(r"x/data\.jsonl:1#[0-9a-f]{8}", ids[0][0])
    [first, _] = FileSource(f"{tmp_path}/here/x/data.jsonl").read(PreferencePair)
    assert first.id.startswith("data.jsonl:1#")


def test_given_ids_stay_even_where_they_repeat(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{**ROW, "id": 1}, {**ROW, "id": 1}])
    assert [pair.id for pair in FileSource(path).read(PreferencePair)] == ["1", "1"]


def test_sources_of_a_configuration() -> None:
    source = FileSource("b", weight=0.5)
    assert as_sources("a") == [FileSource("a")]
    assert as_sources(source) == [source]
    assert as_sources(["a", source]) == [FileSource("a"), source]
    assert as_sources([]) == []
    assert isinstance(source, Source) and FileSource("a").weight == Source.weight == 1.0


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"^a: weight: found 0, expected more than 0$"):
        FileSource("a", weight=0)
    with pytest.raises(UserError, match=r"^a: limit: found 0, expected 1 or more$"):
        FileSource("a", limit=0)
    expected = "./a.jsonl: found split or name for a file, expected them only for a data set of the hub"
    assert refusal("./a.jsonl", split="test") == refusal("./a.jsonl", name="main") == expected


def test_a_stream_reads_one_record_at_a_time(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [ROW, {**ROW, "chosen": "b"}])
    records = FileSource(path).stream(PreferenceExample)
    assert next(records)[0] == f"{path}:1"
    with pytest.raises(UserError, match=r"a\.jsonl:2: fields 'chosen' and 'rejected' are equal"):
        next(records)


def test_a_large_parquet_file_is_not_held_in_memory(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [{**ROW, "prompt": f"{draw.getrandbits(8000):x}"} for _ in range(8000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="none")
    before = pa.total_allocated_bytes()
    records = FileSource(str(tmp_path / "a.parquet")).stream(PreferenceExample)
    next(records)
    # 16 MB in a single row group.
    assert pa.total_allocated_bytes() - before < 8_000_000
    assert sum(1 for _ in records) == 7999


def test_invalid_rows_are_left_out_and_counted_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(tmp_path / "a.jsonl", [ROW, {**ROW, "rejected": "a"}, ROW])
    with Path(path).open("a") as file:
        file.write('{"prompt": \n[]\n' + json.dumps(ROW) + "\n")
    assert refusal(path).startswith(f"{path}:2: ")
    source = FileSource(path, skip_invalid=True)
    assert [at for at, _ in source.stream(PreferenceExample)] == [f"{path}:{line}" for line in (1, 3, 6)]
    first = "fields 'chosen' and 'rejected' are equal; expected two different answers"
    assert caplog.messages == [f"{path}: 3 of 6 rows are invalid and left out; the first: {path}:2: {first}"]
    assert source.fingerprint() != FileSource(path).fingerprint()
    write_rows(tmp_path / "a.jsonl", [{**ROW, "rejected": "a"}] * 2)
    assert refusal(path, skip_invalid=True) == f"{path}: none of the 2 rows is valid; the first: {path}:1: {first}"


def test_rows_that_are_left_out_are_reported_without_the_advice_to_leave_them_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = {"id": "1", "question": "q", "answer_a": "a", "answer_b": "b", "label": "A"}
    path = write_rows(tmp_path / "pairs.jsonl", [pair, {**pair, "id": "2", "answer_b": "a"}])
    with pytest.raises(UserError, match="skip_invalid of FileSource leaves such rows out"):
        FileSource(path).read(PreferencePair)
    assert len(FileSource(path, skip_invalid=True).read(PreferencePair)) == 1
    assert "1 of 2 rows are invalid" in caplog.text and "skip_invalid" not in caplog.text


# What is written, as TRL reads it.

TURN = {"role": "user", "content": "2+2?"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_examples_are_written_in_the_conversational_form_of_trl(tmp_path: Path, name: str) -> None:
    """TRL trains SFT on `completion` given `prompt`, and DPO on `chosen` and `rejected` given `prompt`.

    See "Dataset formats and types" in its documentation: all of them are lists of messages, and a row with `messages`
    is trained on as a whole.
    """
    prompt = ({"role": "system", "content": "s"}, TURN)
    examples: dict[str, SFTExample | PreferenceExample] = {
        "completion": SFTExample(prompt, "4", "p", {"n": 1}),
        "chosen": PreferenceExample(prompt, "4", "5", {"n": 1}),
    }
    for better, example in examples.items():
        write_records(tmp_path / better / name, [example])
        loader = "json" if name.endswith("jsonl") else "parquet"
        files = str(tmp_path / better / name)
        [row] = datasets.load_dataset(loader, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        known = {"prompt", "completion", "messages", "text", "chosen", "rejected", "label", "tools", "images"}
        wanted = {"prompt", "completion"} if better == "completion" else {"prompt", "chosen", "rejected"}
        assert row.keys() & known == wanted
        assert row["prompt"] == list(prompt)
        for answer in wanted - {"prompt"}:
            assert row[answer] == [{"role": "assistant", "content": getattr(example, answer)}]
        assert FileSource(files).read(type(example)) == [example]


@pytest.mark.parametrize("stored", [lambda turns: turns, json.dumps])
def test_rows_of_earlier_versions_are_read(tmp_path: Path, stored: Any) -> None:
    rows: list[dict[str, Any]] = [{"messages": stored([TURN]), "completion": "4", "pair_id": "p", "meta": {"n": 1}}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert FileSource(path).read(SFTExample) == [SFTExample((TURN,), "4", "p", {"n": 1})]
    path = write_rows(tmp_path / "b.jsonl", [{"messages": stored([TURN]), "chosen": "4", "rejected": "5", "meta": {}}])
    assert FileSource(path).read(PreferenceExample) == [PreferenceExample((TURN,), "4", "5")]


# Fingerprints.


def test_a_fingerprint_depends_on_content_and_settings(tmp_path: Path) -> None:
    def fingerprint(path: str, **settings: Any) -> str:
        found = FileSource(path, **settings).fingerprint()
        assert found is not None
        return found

    path = write_rows(tmp_path / "a.jsonl", [ROW, ROW])
    first = fingerprint(path)
    write_rows(tmp_path / "other/a.jsonl", [ROW, ROW])
    assert fingerprint(f"{tmp_path}/other/a.jsonl") == fingerprint(f"{tmp_path}/other/*.jsonl") == first
    assert fingerprint(path, weight=3.0) == first
    # The names of files are in the ids, and their sequence is that of the records.
    write_rows(tmp_path / "two/a.jsonl", [ROW])
    write_rows(tmp_path / "two/b.jsonl", [ROW])
    write_rows(tmp_path / "three/b.jsonl", [ROW, ROW])
    others = [fingerprint(f"{tmp_path}/two"), fingerprint(f"{tmp_path}/three"), fingerprint(path, limit=1)]
    write_rows(tmp_path / "a.jsonl", [ROW, {**ROW, "rejected": "c"}])
    assert len({first, fingerprint(path), *others}) == 5


def test_subclasses_and_mixtures_have_no_fingerprint(tmp_path: Path) -> None:
    class Shouting(FileSource):
        def rows(self) -> Any:
            return ((at, {**row, "chosen": row["chosen"].upper()}) for at, row in super().rows())

    path = write_rows(tmp_path / "a.jsonl", [ROW])
    assert Shouting(path).fingerprint() is None
    assert [record.chosen for _, record in Shouting(path).stream(PreferenceExample)] == ["A"]
    assert Mixture([path]).fingerprint() is None


def test_a_fingerprint_of_missing_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\./none\.jsonl: no such file$"):
        FileSource("./none.jsonl").fingerprint()
    with pytest.raises(UserError, match="found split or name for a file"):
        FileSource(write_rows(tmp_path / "a.jsonl", [ROW]), split="test").fingerprint()


# Values that JSON does not have.

TIME = datetime.datetime(2024, 5, 1, 12, 30)
TABLE_ROW = {
    "question": "q",
    "answers": ["a", "b"],
    "scores": [decimal.Decimal("1.5"), decimal.Decimal("2.0")],
    "meta": {"at": TIME, "days": [TIME.date()], "cost": decimal.Decimal("0.1")},
    "unread": b"\xff",
}
PLAIN = {"scores": [1.5, 2], "at": "2024-05-01T12:30:00", "days": ["2024-05-01"], "cost": 0.1}


@pytest.mark.parametrize("place", ["hub", "file"])
def test_decimals_and_times_of_tables_can_be_written_as_json(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, path = pa.Table.from_pylist([TABLE_ROW]), str(tmp_path / "a.parquet")
    pq.write_table(table, path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(table))
    (found,) = FileSource("org/name" if place == "hub" else path).read(AnswerSet)
    assert found.meta == PLAIN
    write_records(tmp_path / "a.jsonl", [found])
    assert FileSource(str(tmp_path / "a.jsonl")).read(AnswerSet) == [found]


@pytest.mark.parametrize(
    ("field", "value"), [("meta", {"raw": b"x"}), ("scores", [b"1", b"2"]), ("question", b"q"), ("meta", b"x")]
)
def test_bytes_are_refused_where_they_are_read(field: str, value: Any, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**TABLE_ROW, field: value}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: row 1: field '{field}.*': found .*, expected"):
        FileSource(str(tmp_path / "a.parquet")).read(AnswerSet)


def test_a_label_that_a_table_stores_as_a_decimal_is_read(tmp_path: Path) -> None:
    row = {"instruction": "q", "output_1": "x", "output_2": "y", "label": decimal.Decimal("2.0")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert FileSource(str(tmp_path / "a.parquet")).read(PreferencePair)[0].label == "B"


# The hub.


def test_the_fingerprint_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {name: datasets.Dataset.from_list([{**ROW, "id": name}]) for name in "ab"}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: sets[name])
    found = [FileSource("org/name", name=name).fingerprint() for name in "aab"]
    assert found[0] == found[1] and len({*found, None}) == 3
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: sets["b"])
    assert FileSource("org/name", name="a").fingerprint() not in found


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return datasets.Dataset.from_list([{**ROW, "id": "1"}, {**ROW, "id": None}, {**ROW, "chosen": "b", "id": None}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    first, second = FileSource("org/name", "test", "main", limit=2).read(PreferencePair)
    assert asked == [(("org/name", "main"), {"split": "test"})]
    assert first.id == "1" and second.id.startswith("org/name[test]: row 2#")
    assert refusal("org/name").startswith("org/name[train]: row 3: fields 'chosen' and 'rejected' are equal")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach\nit"), "no such file, and the hub could not be reached"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist"),
            "no such file, and the hub has no data set of that name that you can access",
        ),
        (
            ValueError('Unknown split "test".\nTry another.'),
            'no such file, and loading it from the hub failed: Unknown split "test".',
        ),
        (KeyError(), "no such file, and loading it from the hub failed: KeyError"),
    ],
)
def test_a_hub_data_set_that_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert refusal("org/name") == f"org/name: {message}"


def test_a_missing_file_is_not_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert refusal("org/name.jsonl") == "org/name.jsonl: no such file"
    assert refusal("./name") == "./name: no such file"


# The split.


def example(question: str, answer: str = "a") -> SFTExample:
    return SFTExample(({"role": "user", "content": question},), answer)


def pair(question: str) -> PreferencePair:
    return PreferencePair(question, question, "a", "b", "A")


fractions = st.floats(0, 1)
questions = st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=3), max_size=20)


@given(questions, fractions, st.integers())
def test_no_question_is_on_both_sides_and_no_record_is_lost(asked: list[str], fraction: float, seed: int) -> None:
    records = [example(question, str(n)) for n, question in enumerate(asked)]
    train, held_out = split_by_group(records, fraction, seed)
    groups = {record.group for record in train}, {record.group for record in held_out}
    assert not groups[0] & groups[1]
    assert sorted(train + held_out, key=records.index) == records
    assert train == [record for record in records if record in train]
    if fraction > 0 and len(groups[0] | groups[1]) >= 2:
        assert train and held_out
    if fraction == 0 or len(groups[0] | groups[1]) == 1:
        assert not held_out


@given(st.integers(0, 50), fractions.filter(lambda x: 0.2 < x < 0.8), st.integers(), st.randoms())
def test_the_side_of_a_question_does_not_depend_on_other_rows(extra: int, fraction: float, seed: int, rng: Any) -> None:
    before = [example(f"q{n}") for n in range(60)]
    after = before + [example(f"new {n}") for n in range(extra)]
    rng.shuffle(after)
    kept = {record.group for record in split_by_group(before, fraction, seed)[1]}
    grown = {record.group for record in split_by_group(after, fraction, seed)[1]}
    assert kept == grown & {record.group for record in before}


@given(questions, fractions, st.integers())
def test_both_orders_of_a_pair_are_on_one_side_with_opposite_labels(
    asked: list[str], fraction: float, seed: int
) -> None:
    pairs = [pair(question) for question in asked]
    both = [order for one in pairs for order in (one, one.swapped())]
    for side in split_by_group(both, fraction, seed):
        assert len(side) % 2 == 0
        for one, other in zip(side[::2], side[1::2], strict=True):
            assert one.swapped() == other and {one.label, other.label} == {"A", "B"}


def test_the_fraction_holds_and_the_seed_changes_the_split() -> None:
    records = [example(f"q{n}") for n in range(4000)]
    sides = [split_by_group(records, 0.1, seed)[1] for seed in (0, 1)]
    assert all(340 < len(side) < 460 for side in sides)
    assert 20 < len([record for record in sides[0] if record in sides[1]]) < 65


def test_judgments_of_one_question_are_on_one_side() -> None:
    turns = [({"role": "user", "content": f"judge {n}"},) for n in range(40)]
    records = [PreferenceExample(turn, "a", "b", {"question": f"k{n % 5}"}) for n, turn in enumerate(turns)]
    train, held_out = split_by_group(records, 0.5, 0)
    assert not {record.group for record in train} & {record.group for record in held_out}


# Public files.

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("JUDGELIT_SHARED", REPOSITORY.parent / "shared")) / "data"


def shared(path: str) -> str:
    if not (SHARED / path.split("*")[0]).exists():
        pytest.skip(f"no public data at {SHARED}; JUDGELIT_SHARED names the folder that holds data/")
    return str(SHARED / path)


def test_pandalm(caplog: pytest.LogCaptureFixture) -> None:
    path = shared("train/pandalm/testset-v1.json")
    assert "field 'response1': found ''" in refusal(path)
    pairs = FileSource(path, skip_invalid=True).read(PreferencePair)
    assert "54 of 999 rows are invalid and left out" in caplog.text
    assert len(pairs) == len({pair.id for pair in pairs}) == 945
    assert len({pair.question_key for pair in pairs}) == 164
    assert Counter(pair.label for pair in pairs) == {"B": 444, "A": 398, "tie": 103}
    train, held_out = split_by_group(pairs, 0.2, 0)
    assert not {pair.question for pair in train} & {pair.question for pair in held_out}


def test_llmbar() -> None:
    pairs = FileSource(shared("eval/llmbar/**/dataset.json")).read(PreferencePair)
    assert len(pairs) == len({pair.id for pair in pairs}) == 419
    assert Counter(pair.label for pair in pairs) == {"B": 213, "A": 206}
    assert Counter(pair.id.partition("/dataset.json:")[0] for pair in pairs) == {
        "Adversarial/GPTInst": 92,
        "Adversarial/GPTOut": 47,
        "Adversarial/Manual": 46,
        "Adversarial/Neighbor": 134,
        "Natural": 100,
    }


def test_hh_rlhf() -> None:
    path = shared("train/hh_harmless/test.jsonl.gz")
    source = FileSource(path, skip_invalid=True)
    public = PublicSource("hh-rlhf", path).read(PreferencePair)
    assert [replace(pair, source="") for pair in public] == source.read(PreferencePair)
    pairs, examples = source.read(PreferencePair), source.read(PreferenceExample)
    assert len(pairs) == len(examples) == 2308
    assert 1000 < sum(pair.label == "A" for pair in pairs) < 1312
    for pair, example in zip(pairs, examples, strict=True):
        better = (pair.answer_a, pair.answer_b) if pair.label == "A" else (pair.answer_b, pair.answer_a)
        assert better == (example.chosen, example.rejected)
        assert [turn["role"] for turn in example.messages] == ["user", "assistant"] * (len(pair.context) // 2) + [
            "user"
        ]


def test_gsm8k_with_answers_of_models() -> None:
    source = PublicSource("gsm8k", shared("train/gsm8k_model_solutions"))
    pairs = source.read(PreferencePair)
    assert len(pairs) == len({pair.id for pair in pairs}) == 2426  # 3 of 2,429 have the answers of another pair.
    assert len({pair.question for pair in pairs}) == 731
    assert len(source.read(AnswerSet)) == 1319


def test_evalbiasbench() -> None:
    pairs = FileSource(shared("eval/evalbiasbench/biasbench.json")).read(PreferencePair)
    assert len(pairs) == len({pair.id for pair in pairs}) == 80
    assert {pair.label for pair in pairs} == {"A"}
    assert Counter(pair.category for pair in pairs)["length bias"] == 17

import gzip
import json
import os
import stat
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.files import data_files, looks_like_file, read_rows, write_records
from judgelit.records.records import AnswerSet, Judgment, PreferenceExample, PreferencePair, Record, SFTExample

TURN = {"role": "user", "content": "?"}
HOSTILE = "a\nb\r\n\u2028\u2029\x85\x00\x1f\ufeff\"\\'\U0001f600<|im_end|> \u202e"
RECORDS: list[Record] = [
    PreferencePair("1", HOSTILE, "", HOSTILE, "tie", context=(TURN, {"role": "assistant", "content": HOSTILE})),
    PreferencePair("2", "q", "a", "b", "A", category="c"),
]
EXAMPLES = [
    SFTExample((TURN,), "x", "p", {"template": "t", "n": 1}),
    SFTExample((TURN,), "y", "", {"other": [1, {"deep": None}], "n": "text"}),
    SFTExample((TURN,), "z"),
]

ANSWER_SETS = [
    AnswerSet("1", HOSTILE, (HOSTILE, "", HOSTILE), (TURN,), {"ranks": [1, 2, 1]}),
    AnswerSet("2", "q", ("a",)),
]

hostile_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8) | st.just(HOSTILE)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows(path: Path | str) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(str(path))]


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        rows(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Reading.


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", '{"x": 1}\n\n {"x": 2}\r\n{"x": 3}', [":1", ":3", ":4"]),
        ("a.ndjson", '\ufeff{"x": 1}\n{"x": 2}\n{"x": 3}\n', [":1", ":2", ":3"]),
        ("a.json", '\ufeff[\n {"x": 1},\n {"x":\n  2},\n {"x": 3}\n]\n', [":2", ":3", ":5"]),
        ("a.json", '[{"x": 1}, {"x": 2}, {"x": 3}]', [":1", ": item 2", ": item 3"]),
        ("a.json", '{"x": 1}\n{"x": 2}\n\n{"x": 3}\n', [":1", ":2", ":4"]),
        ("a.json", '{\n "x": 1\n}\n{"x": 2} {"x": 3}', [":1", ":4", ": item 3"]),
        (
            "a.json",
            '{"k": [{"x": 1}, {"x": 2}], "version": "1", "n": [4], "l": [{"x": 3}]}',
            [": item 1 of 'k'", ": item 2 of 'k'", ": item 1 of 'l'"],
        ),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_rows_come_with_their_place(tmp_path: Path, name: str, text: str, places: list[str], zipped: bool) -> None:
    path = tmp_path / (name + ".gz" if zipped else name)
    write(path, gzip.compress(text.encode()) if zipped else text)
    found = list(read_rows(str(path)))
    assert [row for _, row in found] == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert [at for at, _ in found] == [f"{path}{place}" for place in places]


@pytest.mark.parametrize(
    "row", [{"messages": [TURN], "completion": "x"}, {"conversations": [{"from": "human"}]}, {"a": 1}]
)
def test_an_object_with_turns_or_without_lists_is_one_row(tmp_path: Path, row: dict[str, Any]) -> None:
    assert rows(write(tmp_path / "a.json", json.dumps(row, indent=1))) == [row]


def test_a_list_of_one_row_that_holds_lists_is_one_row(tmp_path: Path) -> None:
    row = {"question": "q", "answers": [{"text": "a"}]}
    assert rows(write(tmp_path / "a.json", json.dumps([row]))) == [row]


def test_line_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"x": HOSTILE}, ensure_ascii=False) + '\n{"x": 2}')
    assert [(at.removeprefix(path), row["x"]) for at, row in read_rows(path)] == [(":1", HOSTILE), (":2", 2)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_surrogates_are_joined_or_replaced(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, r'{"x": "\ud83d\ude00 \ud83d! \ude00", "y": ["\uDFFF", "\\ud83d"]}')
    assert rows(path) == [{"x": "\U0001f600 \ufffd! \ufffd", "y": ["\ufffd", "\\ud83d"]}]


def test_parquet_keeps_a_field_that_the_first_record_lacks(tmp_path: Path) -> None:
    pairs = [PreferencePair("1", "q", "a", "b", "A"), PreferencePair("2", "q", "a", "b", "A", author_b="m")]
    write_records(tmp_path / "a.parquet", pairs)
    assert [PreferencePair.from_dict(row, "here") for row in rows(tmp_path / "a.parquet")] == pairs


def test_parquet_streams_with_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"x": n, "m": [TURN]} for n in range(2000)]), path, row_group_size=700)
    found = list(read_rows(str(path)))
    assert found[1999] == (f"{path}: row 2000", {"x": 1999, "m": [TURN]}) and len(found) == 2000


def test_a_folder_means_its_data_files_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", '{"x": 2}')
    write(tmp_path / "a.json", '[{"x": 1}]')
    write(tmp_path / "c.jsonl", "")
    write(tmp_path / "README.md", "not data")
    write(tmp_path / ".a.jsonl", "not data")
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "d.jsonl", '{"x": 3}')
    assert rows(tmp_path) == [{"x": 1}, {"x": 2}]
    assert rows(f"{tmp_path}/*.jsonl") == [{"x": 2}]
    assert rows(f"{tmp_path}/**/*.jsonl") == [{"x": 2}, {"x": 3}]
    assert data_files(f"{tmp_path}/**/*.jsonl")[0] == tmp_path


@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    """As git-annex, DVC and the cache of Hugging Face leave them where a file was not fetched."""
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "b.jsonl").symlink_to("fetched/elsewhere")
    with pytest.raises(UserError, match=r"b\.jsonl: found a link to fetched/elsewhere, where there is nothing"):
        data_files(f"{tmp_path}{pattern}")
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "notes.txt").symlink_to("gone")
    assert data_files(f"{tmp_path}{pattern}")[1] == [tmp_path / "a.jsonl"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a[1].jsonl", '{"x": 1}')) == [{"x": 1}]


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", '{"x": 1}')
    assert list(read_rows("a.jsonl")) == [("a.jsonl:1", {"x": 1})] == list(read_rows("*.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", "", ": empty: found no rows, expected at least one"),
        ("a.jsonl", "\n \n", ": empty: found no rows, expected at least one"),
        ("a.json", "", ": empty: found no rows, expected at least one"),
        ("a.json", " [ ] ", ": empty: found no rows, expected at least one"),
        ("a.jsonl", '{"x": 1}\n{"x": }', ":2: not JSON: Expecting value at column 7"),
        ("a.jsonl", '[{"x": 1}]', ":1: found a list, expected a row that is an object with named fields"),
        ("a.jsonl", '{"x": 1}\n"x"', ":2: found a text, expected a row that is an object with named fields"),
        ("a.json", '{"x": 1}\nnull', ":2: found null, expected a row that is an object with named fields"),
        ("a.json", "3", ":1: found a number, expected a row that is an object with named fields"),
        ("a.json", '[{"x": 1},\n true]', ":2: found a truth value, expected a row that is an object with named fields"),
        (
            "a.json",
            '{"k": [{"x": 1}, 2]}',
            ": item 2 of 'k': found a number, expected a row that is an object with named fields",
        ),
        ("a.json", '[{"x": 1},\n{"x" 2}]', ":2: not JSON: Expecting ':' delimiter at column 6"),
        ("a.json", '[{"x": 1}\n{"x": 2}]', ":2: not JSON: Expecting ',' delimiter at column 1"),
        ("a.json", '[{"x": 1},\n]', ":2: not JSON: Expecting value at column 1"),
        ("a.json", '[{"x": 1},', ":1: not JSON: Expecting value at column 11"),
        ("a.json", '[{"x": 1}', ":1: not JSON: Expecting ',' delimiter at column 10"),
        ("a.json", "[", ":1: not JSON: Expecting value at column 2"),
        ("a.json", '[{"x": 1}]\n[{"x": 2}]', ":2: not JSON: Extra data at column 1"),
        ("a.json", "[]]", ":1: not JSON: Extra data at column 3"),
        ("a.jsonl", "[" * 200_000, ":1: not JSON: nested too deeply at column 1"),
        ("a.json", '[{"x": 1},\n' + "[" * 200_000, ":2: not JSON: nested too deeply at column 1"),
        ("a.jsonl", '{"x": 1}\n{"x": "caf\xe9"}'.encode("latin-1"), ":2: not UTF-8: byte 0xe9; save the file as UTF-8"),
        ("a.json", '[\n{"x": "caf\xe9"}]'.encode("latin-1"), ":2: not UTF-8: byte 0xe9; save the file as UTF-8"),
        ("a.jsonl", '{"x": 1}'.encode("utf-16"), ":1: not UTF-8: byte 0xff; save the file as UTF-8"),
        (
            "a.txt",
            "x",
            ": unknown suffix, expected one of .jsonl, .ndjson, .json, .jsonl.gz, .ndjson.gz, .json.gz, .parquet",
        ),
    ],
)
def test_an_invalid_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    path = write(tmp_path / name, content)
    assert refusal(path) == path + complaint


def test_numbers_too_long_to_read_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "9" * 10_000)
    assert refusal(path).startswith(f"{path}:1: not JSON: Exceeds the limit")


def test_missing_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.jsonl") == f"{tmp_path}/a.jsonl: no such file"
    suffixes = "expected one of .jsonl, .ndjson, .json, .jsonl.gz, .ndjson.gz, .json.gz, .parquet"
    pattern = f"{tmp_path}/*.jsonl"
    assert refusal(pattern) == f"{pattern}: found no data file, {suffixes}"
    hint = "; for files in subfolders give a pattern such as folder/**/*.jsonl"
    assert refusal(tmp_path) == f"{tmp_path}: found no data file, {suffixes}{hint}"


def test_broken_gzip_and_parquet_files_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"x": 1}\n' * 1000)
    assert "cut.jsonl.gz: not a whole gzip file: " in refusal(write(tmp_path / "cut.jsonl.gz", whole[:-12]))
    assert "no.jsonl.gz: not a whole gzip file: " in refusal(write(tmp_path / "no.jsonl.gz", '{"x": 1}'))
    assert "no.parquet: not a readable Parquet file: " in refusal(write(tmp_path / "no.parquet", "PAR1"))
    latin = pa.array([b"caf\xe9"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"x": latin}), tmp_path / "latin.parquet")
    assert "latin.parquet: not a readable Parquet file: 'utf-8' codec" in refusal(tmp_path / "latin.parquet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{}")
    Path(path).chmod(0)
    assert refusal(path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("allenai/reward-bench", False),
        ("squad", False),
        ("data/nothing.jsonl", True),
        ("nothing.JSON.gz", True),
        ("./nothing", True),
        ("/nothing", True),
        ("~/nothing", True),
        ("nothing/", True),
        ("data/**/x", True),
        ("a/b/c", True),
        ("a\\b", True),
    ],
)
def test_names_of_hub_data_sets_differ_from_names_of_files(
    name: str, is_file: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert looks_like_file(name) is is_file
    (tmp_path / "squad").mkdir()
    assert looks_like_file("squad")


def peak_of_refusal(path: Path) -> str:
    """The refusal of a file, which must take less than 400 MB."""
    tracemalloc.start()
    message = refusal(path)
    arrow = pa.default_memory_pool().max_memory()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000_000 and (arrow is None or arrow < 1_000_000_000)
    return message


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize(
    ("begin", "fill", "end"),
    [('{"x": "', "A", '"}'), ("", " ", ""), ('{"x": [', f'"{"A" * 97}",', "1]}")],
    ids=["text", "space", "list"],
)
def test_a_small_file_with_a_huge_row_is_refused(tmp_path: Path, name: str, begin: str, fill: str, end: str) -> None:
    if name == "a.json.gz" and not begin:
        pytest.skip("space between values is skipped, a megabyte at a time")
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin.encode())
        for _ in range(60):
            file.write(fill.encode() * (1_000_000 // len(fill)))
        file.write(end.encode())
    assert path.stat().st_size < 1_000_000
    assert (
        peak_of_refusal(path)
        == f"{path}:1: found a row of more than 32 MiB, expected a shorter one; write each row on a line of its own"
    )


def test_a_huge_line_is_left_out_if_broken_rows_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"x": 1}\n{"x": "' + "A" * 40_000_000 + '"}\n{"x": 3}\n')
    assert [row for _, row in read_rows(path, broken=True)] == [{"x": 1}, {}, {"x": 3}]


@pytest.mark.parametrize("rows", [["A" * 60_000_000], ["x", "A" * 60_000_000, *"x" * 50]])
def test_a_parquet_file_with_a_huge_value_is_refused(tmp_path: Path, rows: list[str]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": rows}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    assert (
        "found a row of more than 32 MiB, expected a shorter one; write each row on a line of its own"
        in peak_of_refusal(path)
    )


def test_a_parquet_file_that_repeats_a_large_value_is_read_in_small_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["A" * 1_000_000]))
    pq.write_table(pa.table({"x": values}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    found = read_rows(str(path))
    assert len(next(found)[1]["x"]) == 1_000_000
    assert pa.total_allocated_bytes() - before < 200_000_000


def test_a_parquet_row_that_repeats_a_large_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["A" * 1_000_000]))
    pq.write_table(pa.table({"x": pa.ListArray.from_arrays([0, 5000], values)}), path, compression="zstd")
    assert refusal(path).endswith(
        "found a row of more than 32 MiB, expected a shorter one; write each row on a line of its own"
    )


# Writing.


def read_back(path: Path, kind: Any) -> list[Record]:
    found = rows(path)
    for row in found:
        if isinstance(row.get("meta"), str):
            row["meta"] = json.loads(row["meta"])
    return [kind.from_dict(row, "here") for row in found]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.parquet"])
@pytest.mark.parametrize(
    "records",
    [
        RECORDS,
        EXAMPLES,
        [PreferenceExample((TURN,), HOSTILE, "", {"a": None}), PreferenceExample((TURN,), "x", "y", {"b": {}})],
        [
            Judgment("p", (TURN,), HOSTILE, None, "ab", "t", "e", 0),
            Judgment("p", (TURN,), "", "tie", "ba", "t", "e", -1, 0.25),
        ],
        ANSWER_SETS,
    ],
)
def test_records_that_are_written_are_read_back(tmp_path: Path, name: str, records: list[Record]) -> None:
    path = tmp_path / "new" / "folder" / name
    write_records(path, records)
    assert read_back(path, type(records[0])) == records


@pytest.mark.parametrize(("loader", "name"), [("json", "a.jsonl"), ("parquet", "a.parquet")])
@pytest.mark.parametrize(
    "records", [RECORDS, EXAMPLES, ANSWER_SETS, [Judgment("p", (TURN,), "", None, "ab", "t", "e", 0)]]
)
def test_datasets_loads_what_is_written(tmp_path: Path, loader: str, name: str, records: list[Record]) -> None:
    datasets = pytest.importorskip("datasets")
    write_records(tmp_path / name, records)
    data_files = str(tmp_path / name)
    loaded = datasets.load_dataset(loader, data_files=data_files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(records)
    for row, record in zip(loaded, records, strict=True):
        wanted = record.to_dict()
        meta = row.pop("meta", None), wanted.pop("meta", None)
        assert row == wanted
        if loader == "parquet" and meta[0] is not None:
            assert json.loads(meta[0]) == meta[1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_unpaired_surrogates_are_written_as_replacement_characters(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_records(path, [SFTExample((TURN,), "x\ud800y \udc00", "", {"k\udfff": "\ud83d\ude00"})])
    expected = SFTExample((TURN,), "x\ufffdy \ufffd", "", {"k\ufffd": "\U0001f600"})
    assert read_back(path, SFTExample) == [expected]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@settings(max_examples=60, deadline=None)
@given(text=hostile_text, key=hostile_text)
def test_any_text_is_read_back(suffix: str, text: str, key: str) -> None:
    record = PreferenceExample((TURN, {"role": "assistant", "content": text}), "!" + text, text, {key: [text]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        write_records(path, [record])
        [once] = read_back(path, PreferenceExample)
        if not any(0xD800 <= ord(letter) < 0xE000 for letter in text + key):
            assert once == record
        write_records(path, [once])
        assert read_back(path, PreferenceExample) == [once]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, RECORDS)
    before = path.read_bytes()

    def failing() -> Any:
        yield RECORDS[0]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_records(path, failing())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_records(tmp_path / "a.jsonl", RECORDS)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.jsonl")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_no_records_make_a_file_without_rows(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / name, [])
    assert refusal(tmp_path / name) == f"{tmp_path / name}: empty: found no rows, expected at least one"


def test_an_unknown_suffix_and_an_impossible_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a\.csv: unknown suffix for writing, expected one of \.jsonl, \.ndjson, \.parquet$"
    ):
        write_records(tmp_path / "a.csv", RECORDS)
    write(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be written: "):
        write_records(tmp_path / "file" / "a.jsonl", RECORDS)

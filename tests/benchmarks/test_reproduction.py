"""The page of the reproduction has the figures of the runs whose files are kept beside it."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KEPT = BENCHMARKS / "reproduction.tar.xz"


def table(*options: str | Path) -> subprocess.CompletedProcess[str]:
    script = BENCHMARKS / "reproduction_table.py"
    return subprocess.run([sys.executable, script, *options], check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def kept_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the archive that the script writes of the files it has read."""
    return tmp_path_factory.mktemp("reproduction") / "kept.tar.xz"


@pytest.fixture(scope="module")
def printed(kept_again: Path) -> list[str]:
    """The lines that the script prints."""
    done = table("--runs", KEPT, "--keep", kept_again)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_row_of_the_tables_is_on_the_page(printed: list[str]) -> None:
    page = set((BENCHMARKS / "REPRODUCTION.md").read_text(encoding="utf-8").splitlines())
    rows = [line for line in printed if line.startswith("|")]
    assert len(rows) > 50
    assert [row for row in rows if row not in page] == []


def test_an_archive_holds_all_that_the_tables_need(printed: list[str], kept_again: Path) -> None:
    assert table("--runs", kept_again).stdout.splitlines() == printed


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    done = table("--runs", tmp_path)
    assert done.returncode == 1 and "found no finished arm" in done.stderr

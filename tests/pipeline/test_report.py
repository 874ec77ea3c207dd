"""The report at the end of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from judgelit.pipeline.run import Run
from tests.report.conftest import write_run


def test_a_run_writes_its_report_and_survives_its_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Any = SimpleNamespace(folder=write_run(tmp_path / "run", {"base": "03-base"}))
    Run.report(run)
    assert (tmp_path / "run" / "report.html").exists() and "open it in a browser" in capsys.readouterr().out
    (tmp_path / "run" / "results.json").write_text("{")
    Run.report(run)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("report:  not written (") and line.endswith(
        f"judgelit report {tmp_path / 'run'} tries again"
    )

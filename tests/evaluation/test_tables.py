import pytest

from judgelit.evaluation.intervals import Estimate
from judgelit.evaluation.tables import print_table, show, table_rows

KNOWN, UNDEFINED = Estimate(0.5, 0.25, 0.754, 8), Estimate(float("nan"), float("nan"), float("nan"), 0)
RESULTS = {
    "base": {"one": {"accuracy": KNOWN}},
    "sft": {"one": {"accuracy": UNDEFINED}, "two": {"accuracy": KNOWN}},
}


def test_an_estimate_is_shown_in_percent() -> None:
    assert show(KNOWN) == "50.0% [25.0, 75.4]"
    assert show(UNDEFINED) == "-"


def test_rows_of_a_set_are_together() -> None:
    assert list(table_rows(RESULTS, {"accuracy": "right"})) == [
        ("one", "base", "50.0% [25.0, 75.4]"),
        ("one", "sft", "-"),
        ("two", "sft", "50.0% [25.0, 75.4]"),
    ]


def test_the_table_has_the_headings_of_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(RESULTS, {"accuracy": "right"})
    printed = capsys.readouterr().out
    assert "right" in printed and "50.0% [25.0, 75.4]" in printed and "accuracy" not in printed

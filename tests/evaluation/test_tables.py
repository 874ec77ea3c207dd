import pytest

from judgelit.evaluation.intervals import Estimate, Gain
from judgelit.evaluation.tables import (
    general_rows,
    print_general,
    print_rows,
    print_table,
    show,
    show_gain,
    table_rows,
)

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


@pytest.mark.parametrize("columns", [30, 80, 90, 200])
def test_a_terminal_of_any_width_gets_whole_figures(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    metrics = {"accuracy": "accuracy", "consistent_accuracy": "right in both orders", "share_a": "share of A"}
    results = {"runs/a-long-name/of-a-folder/model": {"held_out": dict.fromkeys(metrics, KNOWN)}}
    print_table(results, metrics)
    printed = capsys.readouterr().out
    assert printed.count("50.0% [25.0, 75.4]") == 3
    assert all(heading in printed for heading in metrics.values())


def test_a_table_that_is_too_wide_becomes_lines(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {f"metric_{number}": f"a long heading {number}" for number in range(12)}
    print_table({"judge": {"held_out": dict.fromkeys(metrics, KNOWN)}}, metrics)
    printed = capsys.readouterr().out
    assert "held_out, judge" in printed and printed.count("50.0% [25.0, 75.4]") == 12
    assert all(heading in printed for heading in metrics.values())


def test_ties_are_counted_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    results = {"judge": {"some": {"accuracy": KNOWN, "ties": Estimate(1 / 3, 0, 1, 6)}, "none": {"accuracy": KNOWN}}}
    print_table(results, {"accuracy": "accuracy"})
    printed = capsys.readouterr().out
    assert "some: 2 of 6 pairs are labelled tie; accuracy leaves them out" in printed
    assert "none: " not in printed


def test_a_gain_is_shown_in_points_with_its_sign() -> None:
    assert show_gain(Gain(-0.0125, -0.03, 0.0, 0.1)) == "-1.2 points [-3.0, 0.0]"
    assert show_gain(Gain(1e-9, -1e-9, 0.25, 1)) == "0.0 points [0.0, +25.0]"
    assert show_gain(Gain(0.5, *[float("nan")] * 3)) == "+50.0 points [one question]"
    assert show_gain(Gain(*[float("nan")] * 4)) == "-"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_comparison_has_whole_figures_at_any_width(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    gain = show_gain(Gain(-0.0125, -0.03, 0.0, 0.1))
    rows = [(name, "right in both orders", show(KNOWN), show(KNOWN), gain) for name in ("one", "[two]")]
    print_rows(("set", "metric", "other judge", "this judge", "difference"), rows)
    printed = capsys.readouterr().out
    assert (printed.count("50.0% [25.0, 75.4]"), printed.count("-1.2 points [-3.0, 0.0]")) == (4, 2)
    assert "one" in printed and "[two]" in printed


LOSS = Estimate(1.5, 1.25, 1.754, 8)


def test_general_ability_and_accuracy_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    general = {"base": {"general_loss": LOSS, "instructions": KNOWN}, "sft": {"general_loss": LOSS, "t/acc": KNOWN}}
    assert list(general_rows(general, RESULTS)) == [
        ("judge accuracy, one", "50.0% [25.0, 75.4]", "-"),
        ("judge accuracy, two", "-", "50.0% [25.0, 75.4]"),
        ("general loss, nats a token", "1.500 [1.250, 1.754]", "1.500 [1.250, 1.754]"),
        ("prompts followed", "50.0% [25.0, 75.4]", "-"),
        ("t/acc", "-", "0.500 [0.250, 0.754]"),
    ]
    assert list(general_rows({"base": {"t/ppl": Estimate(9.0, float("nan"), float("nan"), 1)}}, {})) == [
        ("t/ppl", "9.000")
    ]
    print_general(general, RESULTS)
    printed = capsys.readouterr().out
    assert "judge accuracy, two" in printed and "1.500 [1.250, 1.754]" in printed


@pytest.mark.parametrize("columns", [30, 200])
def test_names_do_not_command_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("judgelit.evaluation.tables._UNKNOWN_WIDTH", columns)
    name = "\x1b[2J[red]\u202eone\n"
    print_table({name: {name: {"accuracy": KNOWN, "ties": KNOWN}}}, {"accuracy": "right"})
    print_rows(("set", "metric", "figure"), [(name, name, name)])
    print_general({name: {"general_loss": KNOWN}})
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\u202e") and "\\x1b[2J[red]\\u202eone\\n" in printed

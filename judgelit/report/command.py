"""The command `judgelit report`."""

from pathlib import Path

from judgelit.errors import UserError
from judgelit.parsing import OneLineErrors
from judgelit.report.page import write_report


def main(argv: list[str]) -> None:
    """Run `judgelit report`.

    Raises:
        UserError: A folder has no results, or the output is none to write to.
    """
    parser = OneLineErrors(
        prog="judgelit report",
        description="Write one HTML page of a run or of results: figures with intervals, charts, and every judgment. "
        "It needs no network. Several folders stand side by side.",
    )
    parser.add_argument("folders", nargs="+", help="Folders of `judgelit run` or `judgelit evaluate`.")
    parser.add_argument("-o", "--output", default="report.html", help="The file to write.")
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        help="FILE.py:NAME, a benchmark of your own in these results. Its code is run; give the option once for each.",
    )
    parsed = parser.parse_args(argv)
    output = Path(parsed.output)
    if output.is_dir():
        raise UserError(
            f"output: found the folder {output}, expected a file; add the name of a file, such as report.html"
        )
    write_report([Path(folder) for folder in parsed.folders], output, parsed.benchmark)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB; open it in a browser")

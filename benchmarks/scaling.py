"""Measure the time of a DPO step over prompt lengths and vocabulary sizes, and compare it with its floor.

    python benchmarks/scaling.py --model DIR --data FILE --steps 3 [--lengths 200 400] [--vocabulary 1 3] [--plot PNG]

Each step trains on one pair (--batch): a prompt of the given length and two completions of 120 tokens, cut from the
texts of FILE. Training is in float32 with a frozen reference and activation checkpointing. Two processes take turns:
one uses the shared-prefix layout, the other the concatenated layout. With vocabulary x3, embedding and head are three
times as large. --steps is the number of rounds over all lengths; one further round is profiled. `floor.py` defines the
floor of a step.

The script prints one claim for each vocabulary: the median over lengths of floor / time in the shared-prefix layout,
with [floor, time] of each length as pairs. The last line is the claim for the first vocabulary.
"""

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

import side_by_side

COMPLETION = 120
LAYOUTS = {"ours": "shared_prefix", "theirs": "concatenated"}
BACKWARD_ENDS = "backward ends"
KINDS = ("matmul", "attention", "elementwise", "optimizer", "other")


def main() -> None:
    parser = side_by_side.argument_parser(__doc__)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[200, 400, 800, 1600, 3200], help="prompt lengths in tokens"
    )
    parser.add_argument(
        "--vocabulary", type=int, nargs="+", default=[1, 3], help="vocabulary sizes as multiples of the model's"
    )
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("scaling.png"), help="file of the plot")
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(steps=3, warmup=1, batch=1)
    args = parser.parse_args()
    if args.role != "parent":
        side_by_side.run_worker(args, train, train)
        return
    columns = ["vocabulary", "prompt", "layout", "seconds", "floor", "reached", *KINDS, "GFLOP/s", "peak GB"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    found = [row for times in args.vocabulary for row in measure(args, times)]
    plot(found, args)
    for times in reversed(args.vocabulary):
        shared = [row for row in found if row["layout"] == "shared_prefix" and row["vocabulary"] == times]
        side_by_side.print_claim(
            f"DPO step, vocabulary x{times}: fraction of the floor reached, median over prompts of {args.lengths}",
            0.7,
            [[row["floor"], row["seconds"]] for row in shared],
            smaller_is_better=False,
            ratio=statistics.median(row["reached"] for row in shared),
            rows=[row for row in found if row["vocabulary"] == times],
        )


def measure(args: Any, times: int) -> list[dict[str, Any]]:
    """Measure each length in each layout. Print and return the rows of the table."""
    reports: dict[tuple[int, str], list[dict[str, Any]]] = {}
    lengths = schedule(args)[args.warmup :]
    pairs = side_by_side.paired_steps(len(lengths), args.warmup, "--times", str(times))
    for length, both in zip(lengths, pairs, strict=True):
        for layout, report in zip(LAYOUTS.values(), both, strict=True):
            reports.setdefault((length, layout), []).append(report)
    rows = []
    for (length, layout), (*timed, profiled) in sorted(reports.items()):
        row: dict[str, Any] = {"vocabulary": times, "prompt": length, "layout": layout}
        row["seconds"] = statistics.median(report["seconds"] for report in timed)
        row["floor"] = statistics.median(report["floor"] for report in timed)
        row["reached"] = statistics.median(report["floor"] / report["seconds"] for report in timed)
        row["shares"] = profiled["shares"]
        row["rate"] = statistics.median(report["rate"] for report in timed)
        row["peak_bytes"] = max(report["peak_bytes"] for report in timed)
        cells = [f"x{times}", f"{length}", layout, f"{row['seconds']:.2f}", f"{row['floor']:.2f}"]
        cells += [f"{share:.0%}" for share in (row["reached"], *row["shares"].values())]
        cells += [f"{row['rate'] / 1e9:.0f}", f"{row['peak_bytes'] / 1e9:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        rows.append(row)
    return rows


def schedule(args: Any) -> list[int]:
    """The prompt length of each step: warm-up, timed rounds, profiled round."""
    return [args.lengths[0]] * args.warmup + args.lengths * (args.steps + 1)


def train(turns: side_by_side.Turns, args: Any) -> None:
    """Train judgelit's DPOModule in one of the two layouts."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader

    from judgelit.batches.flat_batch import flatten_preferences
    from judgelit.models.backbone import Backbone
    from judgelit.training.dpo import DPOModule

    class Widened(Backbone):
        def build(self, *more: Any, **settings: Any) -> Any:
            model = super().build(*more, **settings)
            if args.times > 1:
                model.resize_token_embeddings(args.times * model.config.vocab_size, mean_resizing=False)
            return model

    class Mark(L.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            with torch.profiler.record_function(BACKWARD_ENDS):
                pass

    layout: Any = LAYOUTS[args.role]
    module = DPOModule(
        Widened(args.model),
        reference="frozen",
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True),
        layout=layout,
    )
    batches = [flatten_preferences(pairs) for pairs in cut_pairs(args)]
    profiled = ProfiledTurns(turns, first=len(batches) - len(args.lengths))
    # The parent stops the process before the last batch.
    side_by_side.fit_ours(profiled, module, DataLoader([*batches, batches[0]], batch_size=None), Mark())


def cut_pairs(args: Any) -> list[list[Any]]:
    """Pairs with the schedule's prompt lengths, cut from the texts of the data."""
    from judgelit.batches.flat_batch import TokenizedPreference
    from judgelit.batches.tokenizer import ChatTokenizer
    from judgelit.records.records import PreferenceExample
    from judgelit.records.sources import FileSource

    tokenizer = ChatTokenizer.load(args.model)
    ids = []
    for example in FileSource(args.data).read(PreferenceExample):
        ids += tokenizer.prompt_ids(example.messages)
        ids += [token for text in (example.chosen, example.rejected) for token in tokenizer.completion_ids(text)]
    rng = random.Random(args.seed)

    def cut(count: int) -> list[int]:
        start = rng.randrange(len(ids))
        return [ids[place % len(ids)] for place in range(start, start + count)]

    return [
        [TokenizedPreference("", cut(length), cut(COMPLETION), cut(COMPLETION)) for _ in range(args.batch)]
        for length in schedule(args)
    ]


class ProfiledTurns:
    """Turns with a profiler from step `first` on."""

    def __init__(self, turns: side_by_side.Turns, first: int) -> None:
        self.turns = turns
        self.before = first
        self.profiler: Any = None
        self.shares: dict[str, float] | None = None

    def begin(self) -> None:
        import torch

        self.turns.begin()
        if self.before <= 0:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        self.before -= 1

    def done(self) -> None:
        seconds = self.turns.done()
        if self.profiler is not None:
            self.profiler.stop()
            self.shares = shares(self.profiler.events(), seconds)

    def end(self, **found: Any) -> None:
        self.turns.end(**found, shares=self.shares)


def shares(events: Any, seconds: float) -> dict[str, float]:
    """Share of a step's time by kind of work; `other` is time outside of torch's operators."""
    ends = next(event.time_range.start for event in events if event.name == BACKWARD_ENDS)
    spent = dict.fromkeys(KINDS, 0.0)
    for event in events:
        name = event.name.removeprefix("aten::")
        if name == event.name:
            continue
        if event.time_range.start >= ends:
            kind = "optimizer"
        elif "scaled_dot_product" in name or "flash_attention" in name:
            kind = "attention"
        else:
            kind = "matmul" if name in ("mm", "addmm", "bmm", "baddbmm") else "elementwise"
        spent[kind] += event.self_cpu_time_total / 1e6 / seconds
    return {**spent, "other": 1 - sum(spent.values())}


def plot(rows: list[dict[str, Any]], args: Any) -> None:
    """Plot time, fraction of the floor and shares of time over prompt length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, PercentFormatter, ScalarFormatter

    figure, (time_axes, floor_axes, share_axes) = pyplot.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    colors = dict(zip(LAYOUTS.values(), ("tab:blue", "tab:orange"), strict=True))
    styles = dict(zip(args.vocabulary, ("o-", "s--", "^:", "v-."), strict=False))
    for times in args.vocabulary:
        for layout, color in colors.items():
            some = [row for row in rows if (row["vocabulary"], row["layout"]) == (times, layout)]
            label = f"{layout}, vocabulary x{times}"
            lengths = [row["prompt"] for row in some]
            time_axes.plot(lengths, [row["seconds"] for row in some], styles[times], color=color, label=label)
            floor_axes.plot(lengths, [row["reached"] for row in some], styles[times], color=color, label=label)
            if times == args.vocabulary[0]:
                floors = [row["floor"] for row in some]
                time_axes.plot(lengths, floors, ":", color=color, label=f"{layout}, floor at x{times}")
    floor_axes.axhline(0.7, color="grey", linewidth=1)
    floor_axes.set(title="Fraction of the floor reached", ylim=(0, 1))
    time_axes.set(title="Seconds of a step", yscale="log")
    for axes in (time_axes, floor_axes):
        axes.set_xscale("log")
        axes.set_xticks(args.lengths, [str(length) for length in args.lengths])
        axes.minorticks_off()
        axes.set_xlabel("tokens of the prompt")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    time_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time_axes.yaxis.set_major_formatter(ScalarFormatter())
    shown = [row for row in rows if row["layout"] == "shared_prefix" and row["vocabulary"] == args.vocabulary[0]]
    places = [str(row["prompt"]) for row in shown]
    below = [0.0] * len(shown)
    for kind in KINDS:
        heights = [row["shares"][kind] for row in shown]
        share_axes.bar(places, heights, bottom=below, label=kind)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    title = f"Shares of time: shared_prefix, vocabulary x{args.vocabulary[0]}"
    share_axes.set(title=title, xlabel="tokens of the prompt", ylim=(0, 1))
    share_axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (floor_axes, share_axes):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()

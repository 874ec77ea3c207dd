"""A judge over held-out pairs: prompts out, judgments in, metrics and tables from them."""

from collections.abc import Iterator, Mapping, Sequence

from judgelit.evaluation.metrics import Estimate
from judgelit.generation.engine import Engine
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.prompts import JudgePrompt
from judgelit.progress import track
from judgelit.records.records import Judgment, PreferencePair

SHOWN = ("accuracy", "consistent_accuracy", "consistency", "no_verdict")
"""Metrics of the tables that people read; files hold all."""


def judge(
    engine: Engine, prompts: Sequence[JudgePrompt], sampling: Sampling, seed: int = 0, description: str = "judging"
) -> list[Judgment]:
    """One judgment of each prompt, in the prompts' order."""
    judgments: list[Judgment | None] = [None] * len(prompts)
    answers = engine.answer([prompt.messages for prompt in prompts], sampling, seed=seed)
    for index, (text,) in track(answers, description, total=len(prompts)):
        judgments[index] = as_judgment(prompts[index], text, engine.name, seed)
    return [judgment for judgment in judgments if judgment is not None]


def as_judgment(prompt: JudgePrompt, text: str, engine: str, seed: int) -> Judgment:
    """A generated text with the verdict read from it."""
    return Judgment(
        pair_id=prompt.pair.id,
        prompt=prompt.messages,
        text=text,
        verdict=verdict.parse(text),
        order=prompt.order,
        template=prompt.template,
        engine=engine,
        seed=seed,
    )


def judged_pairs(prompts: Sequence[JudgePrompt]) -> list[PreferencePair]:
    """The pairs behind `prompts`, each once and in its own order."""
    return list({prompt.pair.id: prompt.pair.in_order(prompt.order) for prompt in prompts}.values())


def table_rows(
    results: Mapping[str, Mapping[str, Mapping[str, Estimate]]], metrics: Sequence[str] = SHOWN
) -> Iterator[tuple[str, ...]]:
    """Rows of {stage: {set: {metric: estimate}}}, as text: set, stage, then `value% [low, high]` a metric."""
    sets = dict.fromkeys(name for stage in results.values() for name in stage)
    for name in sets:
        for stage, by_set in results.items():
            if name in by_set:
                yield (name, stage, *(show(by_set[name][metric]) for metric in metrics))


def show(estimate: Estimate) -> str:
    """An estimate as percent with its interval."""
    if estimate.value != estimate.value:
        return "-"
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"

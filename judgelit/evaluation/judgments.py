"""Judgments of pairs: prompts to an engine, its texts to judgments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.generation.engine import Engine, Generated
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.prompts import Asked, Templates
from judgelit.judging.template import Template
from judgelit.judging.token_ids import PromptCounter
from judgelit.progress import track
from judgelit.records.records import AnswerSet, Judgment, PreferencePair


def judge_pairs(
    engine: Engine,
    benchmark: Benchmark[PreferencePair],
    name: str,
    pairs: Sequence[PreferencePair],
    templates: Templates,
    max_new_tokens: int,
    seed: int = 0,
    stop_at_verdict: bool = True,
) -> list[Judgment]:
    """Greedy judgments of the benchmark's prompts for `pairs`.

    Args:
        engine: The judge.
        benchmark: Makes the prompts.
        name: The name of the set of pairs, for messages.
        pairs: The pairs to judge.
        templates: Judge prompts to ask with.
        max_new_tokens: Longest judgment, in tokens.
        seed: Seed of the engine.
        stop_at_verdict: End a judgment with the line that says its verdict.

    Raises:
        UserError: No pair leaves room for a judgment in the model's context.
    """
    loaded = templates.load()
    prompts = make_prompts(benchmark, name, pairs, engine.tokenizer, loaded, max_new_tokens, templates.seed)
    sampling = Sampling(max_new_tokens, stop_at_verdict=stop_at_verdict and benchmark.stops_at_verdict)
    return judge(engine, prompts, sampling, seed, f"judging {name}", benchmark.verdict)


def make_prompts(
    benchmark: Benchmark[Any],
    name: str,
    items: Sequence[PreferencePair | AnswerSet],
    tokenizer: PromptCounter,
    templates: Mapping[str, Template],
    max_new_tokens: int,
    template_seed: int = 0,
) -> list[Asked]:
    """The benchmark's prompts, which leave `max_new_tokens` of the model's context for the judgment.

    Args:
        benchmark: Makes the prompts.
        name: The name of the set, for messages.
        items: What to judge.
        tokenizer: The judge's.
        templates: Judge prompts by id.
        max_new_tokens: Longest judgment, in tokens.
        template_seed: Seed of the draw of templates.

    Raises:
        UserError: No pair leaves room for a judgment in the model's context.
    """
    room = prompt_room(tokenizer, max_new_tokens)
    prompts, report = benchmark.prompts(items, templates, tokenizer, room, seed=template_seed)
    if not prompts:
        raise UserError(f"{name}: no pair fits the {room} tokens left for a judge prompt ({report})")
    if report.skipped or report.shortened or report.note:
        print(f"{name}: {report}")
    return list(prompts)


def prompt_room(tokenizer: PromptCounter, max_new_tokens: int) -> int:
    """Most tokens of a prompt that leaves `max_new_tokens` of the model's context for the judgment.

    Raises:
        UserError: It leaves none.
    """
    room = tokenizer.context - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise UserError(
            f"max_new_tokens: found {max_new_tokens}, expected 1 or more and less than the context of "
            f"{tokenizer.context}"
        )
    return room


def judge(
    engine: Engine,
    prompts: Sequence[Asked],
    sampling: Sampling,
    seed: int = 0,
    description: str | None = "judging",
    parse: Callable[[str], str | None] = verdict.parse,
    samples: int = 1,
) -> list[Judgment]:
    """Judgments of each prompt, in the sequence of the prompts, and of a prompt in that of its samples.

    Args:
        engine: The judge.
        prompts: The prompts.
        sampling: How texts are sampled.
        seed: Seed of the engine.
        description: The words beside the progress bar. None: progress is not shown.
        parse: Reads the verdict of a text.
        samples: Judgments of each prompt.
    """
    found: list[list[Generated]] = [[]] * len(prompts)
    answers = engine.answer([prompt.messages for prompt in prompts], sampling, samples=samples, seed=seed)
    shown = answers if description is None else track(answers, description, total=len(prompts))
    for index, texts in shown:
        found[index] = texts
    return [
        make_judgment(prompt, answer, engine.name, seed, parse, number)
        for prompt, of_prompt in zip(prompts, found, strict=True)
        for number, answer in enumerate(of_prompt)
    ]


def make_judgment(
    prompt: Asked,
    answer: Generated,
    engine: str,
    seed: int,
    parse: Callable[[str], str | None] = verdict.parse,
    sample: int = 0,
) -> Judgment:
    """A judgment: a generated text with its verdict."""
    return Judgment(
        pair_id=prompt.item.id,
        prompt=prompt.messages,
        text=answer.text,
        verdict=parse(answer.text),
        order=prompt.order,
        template=prompt.template,
        engine=engine,
        seed=seed,
        margin=answer.margin,
        finish=answer.finish,
        sample=sample,
    )

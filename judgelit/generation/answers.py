"""`judgelit answer`: sample answers to prompts from a policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judgelit.commands import call
from judgelit.errors import UserError
from judgelit.generation.engine import Engine, EngineSpec, load_engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.progress import track
from judgelit.records.files import refuse_unknown_suffix, write_records
from judgelit.records.prompts import read_prompts
from judgelit.records.records import AnswerSet, Prompt
from judgelit.records.sources import Sources


@dataclass(frozen=True)
class AnswerReport:
    """Report of the sampled answers."""

    prompts: int
    """Number of prompts that were answered."""
    answers: int
    """Number of answers."""
    alike: int
    """Number of prompts with several answers, all equal."""
    blank: int
    """Number of answers without text."""
    cut: int
    """Number of answers that reached the limit of new tokens."""
    too_long: int
    """Number of prompts that were left out because they leave no room for an answer."""
    repeated: int = 0
    """Number of rows that were left out because an earlier one has the same prompt."""

    def __str__(self) -> str:
        counts = {
            "prompts left out as too long": self.too_long,
            "rows left out because they repeat a prompt": self.repeated,
            "prompts with nothing to compare, since all answers are equal": self.alike,
            "blank answers": self.blank,
            "answers cut off at max_new_tokens": self.cut,
        }
        lines = [f"{what}: {count}" for what, count in counts.items() if count]
        return "\n".join([f"{self.answers} answers to {self.prompts} prompts", *lines])


def answer_prompts(
    policy: Engine, prompts: Sequence[Prompt], sampling: Sampling, samples: int = 1, seed: int = 0
) -> tuple[list[AnswerSet], AnswerReport]:
    """Sample answers from a policy, in the sequence of the prompts.

    Args:
        policy: The model that answers.
        prompts: The prompts. Those that leave no room for an answer in the model's context are left out.
        sampling: Length, temperature and top-p of the answers.
        samples: Answers to each prompt.
        seed: Seed of the samples.

    Raises:
        UserError: No prompt fits the model's context.
    """
    context = policy.tokenizer.context
    room = context - sampling.max_new_tokens
    if room < 1:
        raise UserError(f"max_new_tokens: found {sampling.max_new_tokens}, expected less than the context of {context}")
    fitting = [prompt for prompt in prompts if policy.tokenizer.count(prompt.messages) <= room]
    if not fitting:
        raise UserError(
            f"prompts: none of {len(prompts)} fits the {room} tokens that remain for a prompt; lower --max_new_tokens"
        )
    found: dict[int, AnswerSet] = {}
    cut = 0
    answers = policy.answer([prompt.messages for prompt in fitting], sampling, samples=samples, seed=seed)
    for index, generated in track(answers, "answering", total=len(fitting)):
        prompt = fitting[index]
        ends = [one.finish for one in generated]
        cut += ends.count("length")
        texts = tuple(one.text.strip() for one in generated)
        meta = {"policy": policy.name, "finish": ends}
        found[index] = AnswerSet(prompt.id, prompt.question, texts, prompt.context, meta)
    sets = [found[index] for index in range(len(fitting))]
    return sets, AnswerReport(
        prompts=len(sets),
        answers=sum(len(one.answers) for one in sets),
        alike=sum(len(set(one.answers)) == 1 < len(one.answers) for one in sets),
        blank=sum(not answer for one in sets for answer in one.answers),
        cut=cut,
        too_long=len(prompts) - len(fitting),
    )


def answer(
    prompts: Sources,
    output: str,
    samples: int = 4,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
    **engine: Any,
) -> None:
    """Sample answers to prompts from a policy, so that `judgelit judge` can compare them.

    Each line of the output has `id`, `question`, `answers` (a list of texts) and `context` (the turns before the
    question). After a kill, the same command continues and asks nothing twice. Prompts that are too long are left out
    and counted; so are repeated ones.

    Args:
        prompts: Prompts in any public form: a question, a prompt, messages, or examples and pairs, whose answers are
            not used.
        output: File to write, .jsonl or .parquet; the journal of answers is written beside it.
        samples: Answers to each prompt.
        max_new_tokens: Longest answer, in tokens.
        temperature: Temperature of the samples; 0 takes the most probable token, for one answer.
        top_p: Sample from the smallest set of tokens that holds this probability.
        limit: Answer only the first prompts, this many.
        seed: Seed of the samples.
        engine: The fields of `EngineSpec`: the policy.
    """
    path = Path(output)
    refuse_unknown_suffix(path)
    for name, value in (("samples", samples), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name}: found {value}, expected 1 or more")
    # A policy's answer may spell a verdict; it does not end there.
    sampling = Sampling(max_new_tokens, temperature, top_p, stop_at_verdict=False)
    if samples > 1 and temperature == 0:
        raise UserError(
            f"temperature: found 0 with {samples} samples, which would be equal; expected more than 0, or --samples 1"
        )
    spec = EngineSpec(**engine)
    asked, repeated = read_prompts(prompts)
    policy = JournaledEngine(load_engine(spec), path.with_name(path.name + ".journal.sqlite"), "policy")
    sets, report = answer_prompts(policy, asked[:limit], sampling, samples, seed)
    write_records(path, sets)
    print(f"{replace(report, repeated=repeated)}\nwritten to {output}")


def main(argv: list[str]) -> None:
    """Run `judgelit answer`."""
    call(answer, argv, "judgelit answer")

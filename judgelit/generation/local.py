"""A Hugging Face model on this machine as an engine."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from judgelit.batches.flat_batch import pad_prompts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.generate import generate
from judgelit.generation.margins import MarginRecord, letter_tokens, verdict_margin
from judgelit.generation.sampling import Sampling
from judgelit.judging.finished import VerdictEnd
from judgelit.models.fingerprint import fingerprint
from judgelit.records.records import Finish
from judgelit.records.row_fields import Message

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM


class LocalEngine:
    """Generates in batches of conversations of similar length.

    Args:
        model: The model, on its device.
        tokenizer: The model's tokenizer.
        name: The name of the judge in judgments.
        batch_size: Texts generated at once.
    """

    def __init__(self, model: "CausalLM", tokenizer: ChatTokenizer, name: str, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, expected 1 or more")
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self._ends_with_verdict = VerdictEnd(tokenizer)

    @property
    def dtype(self) -> str:
        """The dtype of the weights; of an adapter's model, that of its base."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What results record of the engine."""
        return {"dtype": self.dtype, "weights": self.identity}

    @cached_property
    def _letters(self) -> dict[int, tuple[int, int]]:
        return letter_tokens(self.tokenizer)

    @cached_property
    def identity(self) -> str:
        """A hash of the weights and the chat template."""
        return hashlib.sha256(f"{fingerprint(self.model)} {self.tokenizer.hf.chat_template}".encode()).hexdigest()[:16]

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Yield (index, texts) for every conversation, batch by batch; see `Engine`.

        The batches do not depend on `done`, and a text's random numbers depend only on the seed, its conversation and
        its number. So a run that was interrupted gives the same texts as one that was not; in other batches, texts
        differ only where rounding decides.
        """
        prompts = [self.tokenizer.prompt_ids(messages) for messages in conversations]
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        size = max(1, self.batch_size // samples)
        device = next(self.model.parameters()).device
        for start in range(0, len(by_length), size):
            batch = by_length[start : start + size]
            if all(index in done for index in batch):
                continue
            input_ids, attention_mask = pad_prompts([prompts[index] for index in batch], self.tokenizer.pad_id)
            record = MarginRecord(self._letters)
            answers = generate(
                self.model,
                input_ids.to(device),
                attention_mask.to(device),
                sampling,
                stop_ids=self.tokenizer.stop_ids,
                pad_id=self.tokenizer.pad_id,
                samples=samples,
                seed=seed,
                ends=self._ends_with_verdict,
                watch=record,
            )
            ends = self._ends_with_verdict if sampling.stop_at_verdict else None
            for number, (index, texts) in enumerate(zip(batch, answers, strict=True)):
                generated = []
                for sample, ids in enumerate(texts):
                    text = number if sampling.temperature == 0 else number * samples + sample
                    tokens = len(prompts[index]) if sample == 0 else 0
                    generated.append(read_generated(ids, self.tokenizer, ends, tokens, record.of(text)))
                yield index, generated


def read_generated(
    ids: Sequence[int],
    tokenizer: ChatTokenizer,
    ends: VerdictEnd | None,
    prompt_tokens: int = 0,
    margins: Mapping[int, float] | None = None,
) -> Generated:
    """The generated text with these ids.

    Args:
        ids: New ids, with the stop id if the text has reached one.
        tokenizer: The model's.
        ends: Says whether the text stopped at its verdict; none if texts do not stop there.
        prompt_tokens: As in `Generated`.
        margins: Margins of the tokens that may hold a verdict's letter, by place in `ids`, if they are known.
    """
    finish: Finish = "length"
    if ids and ids[-1] in tokenizer.stop_ids:
        finish = "stop"
    elif ids and ends is not None and ends(ids):
        finish = "verdict"
    margin = verdict_margin(ids, tokenizer, margins or {})
    return Generated(tokenizer.decode(ids), finish, margin, prompt_tokens, len(ids))

"""A Hugging Face model on this machine as an engine."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from judgelit.batches.flat_batch import pad_prompts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.generate import generate
from judgelit.generation.sampling import Sampling
from judgelit.judging.finished import VerdictEnd
from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.records.records import Message

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM


class LocalEngine:
    """Batched generation, conversations of similar length together.

    Args:
        model: The model, on whichever device it is.
        tokenizer: Its tokenizer.
        name: How judgments name their judge.
        batch_size: Texts generated at once.
    """

    def __init__(self, model: "CausalLM", tokenizer: ChatTokenizer, name: str, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, expected 1 or more")
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self._ends = VerdictEnd(tokenizer)

    @cached_property
    def identity(self) -> str:
        """A hash of the weights and the chat template."""
        return hashlib.sha256(f"{fingerprint(self.model)} {self.tokenizer.hf.chat_template}".encode()).hexdigest()[:16]

    @classmethod
    def load(cls, backbone: Backbone, batch_size: int = 32, tokenizer: ChatTokenizer | None = None) -> "LocalEngine":
        """Build the model of `backbone` on the GPU where there is one; its own tokenizer if none is given."""
        if tokenizer is None:
            tokenizer = ChatTokenizer.load(backbone.name_or_path, trust_remote_code=backbone.trust_remote_code)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = backbone.build()
        return cls(model.to(device), tokenizer, backbone.adapter or backbone.name_or_path, batch_size)

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield (index, texts), batch by batch; see `Engine`.

        Batches are the same whatever is `done`, and each has a seed of its own, so a run that was interrupted gives
        the texts that it would have given.
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
            with torch.random.fork_rng():
                torch.manual_seed(seed * 1_000_003 + start)
                answers = generate(
                    self.model,
                    input_ids.to(device),
                    attention_mask.to(device),
                    sampling,
                    stop_ids=self.tokenizer.stop_ids,
                    pad_id=self.tokenizer.pad_id,
                    samples=samples,
                    ends=self._ends,
                )
            for index, texts in zip(batch, answers, strict=True):
                yield index, [self.tokenizer.decode(ids) for ids in texts]

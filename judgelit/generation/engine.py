"""What synthesis and evaluation ask of whatever generates text."""

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from judgelit.generation.sampling import Sampling
from judgelit.records.records import Message


class Engine(Protocol):
    """Conversations in, texts out; what the conversations say is the caller's business."""

    name: str
    """How judgments name their judge."""

    @property
    def identity(self) -> str:
        """Changes whenever answers might: of a local model, a hash of its weights."""
        ...

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield (index, texts) for every conversation, in whatever order they finish.

        Args:
            conversations: Messages, the last of them the user's.
            sampling: Length, temperature, top-p, and whether a text ends with its verdict.
            samples: Texts a conversation.
            seed: Equal seeds give equal texts, also when a part is `done` already.
            done: Indices that are answered already and may be left out.
        """
        ...

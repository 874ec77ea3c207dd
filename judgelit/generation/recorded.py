"""An engine without a model, for a journal that holds all answers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec, Generated, load_engine
from judgelit.generation.journal_file import Journal
from judgelit.generation.sampling import Sampling
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.row_fields import Message


@dataclass
class RecordedEngine:
    """An engine that refuses to answer. A JournaledEngine around it gives the answers of its journal."""

    name: str
    tokenizer: PromptCounter
    identity: str
    """Identity of the engine that has answered."""

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What results record of the engine."""
        return {"engine": self.identity}

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Raise UserError, unless all conversations are done."""
        missing = len(set(range(len(conversations))) - set(done))
        if missing:
            raise UserError(
                f"{self.name}: found no answer to {missing} of {len(conversations)} prompts in the journals, expected "
                "all; run the command of each shard again, on the same pairs"
            )
        yield from ()


def recorded_engine(spec: EngineSpec, journal: Path, purpose: str) -> RecordedEngine:
    """An engine with the name and the tokenizer of `spec`, and the identity for which a journal was made.

    No weights are read. An endpoint is asked for its model's context length.

    Args:
        spec: The engine that has answered.
        journal: The journal of its answers.
        purpose: What the answers are for.
    """
    identity = str(Journal(journal).settings(purpose).get("engine", ""))
    if spec.endpoint is not None:
        return RecordedEngine(spec.model, load_engine(spec).tokenizer, identity)
    from judgelit.generation.loading import NamedModel, find_device

    found = NamedModel.find(spec, find_device("cpu"))
    return RecordedEngine(spec.model, found.load_tokenizer(spec.chat_template, spec.chat_template_kwargs), identity)

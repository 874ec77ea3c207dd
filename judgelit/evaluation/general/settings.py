"""What is measured of a model's general ability."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from judgelit.errors import UserError
from judgelit.evaluation.general.instructions import Instructed, builtin_instructions
from judgelit.records.records import SFTExample
from judgelit.records.sources import Sources
from judgelit.records.unicode import dump_json

NAME = "general"
"""The name under which logs and files keep general ability."""
InstructionSet = Literal["builtin", "none"]


@dataclass(frozen=True)
class General:
    """What is measured of a model's general ability."""

    examples: Sources | None = None
    """Held-out general examples, prompts with completions in any public form, whose loss is measured. By default no
    loss is measured."""
    instructions: InstructionSet = "builtin"
    """Prompts with instructions that a program can check: `builtin`, 96 prompts of judgelit's own, or `none`."""
    limit: int | None = None
    """Use only the first examples, the first prompts and the first rows of each of the harness's tasks, this many."""
    max_new_tokens: int = 512
    """Longest answer to a prompt of `instructions`, in tokens."""
    harness: list[str] | None = None
    """Tasks of lm-evaluation-harness, such as [ifeval, gsm8k], or YAML files of tasks. Needs the extra `harness`."""

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"general.{name}: found {value}, expected 1 or more")
        if self.instructions not in ("builtin", "none"):
            raise UserError(f"general.instructions: found {self.instructions!r}, expected builtin or none")
        if self.harness is not None and not all(isinstance(task, str) and task.strip() for task in self.harness):
            raise UserError(f"general.harness: found {self.harness!r}, expected names of tasks or YAML files of tasks")
        if self.examples is None and self.instructions == "none" and not self.harness:
            raise UserError("general: found nothing to measure, expected examples, instructions or harness")

    def prompts(self) -> list[Instructed]:
        """The prompts of `instructions`."""
        return [] if self.instructions == "none" else builtin_instructions()[: self.limit]

    def made_from(self, examples: list[SFTExample] | None) -> dict[str, Any]:
        """What results record: the settings, with hashes of the examples and of the prompts."""
        prompts = [prompt.text for prompt in self.prompts()]
        return {
            "limit": self.limit,
            "examples": examples and _hash([example.to_dict() for example in examples]),
            "instructions": f"{self.instructions} {_hash(prompts)}" if prompts else "none",
            "max_new_tokens": self.max_new_tokens,
            "harness": self.harness,
        }


def _hash(rows: list[Any]) -> str:
    """A hash of JSON values, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(dump_json(row).encode() + b"\n")
    return digest.hexdigest()[:16]

"""Engines: what turns conversations into texts, and how to load one."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from judgelit.errors import UserError
from judgelit.generation.requests import Requests, base_urls
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.records import Finish
from judgelit.records.row_fields import Message

if TYPE_CHECKING:
    from judgelit.batches.tokenizer import ChatTokenizer
    from judgelit.generation.sampling import Sampling


_LONGEST_NAME = 255
"""Most bytes of a file's name."""
_LOCAL = ("dtype", "device", "quantization", "attention", "batch_size", "chat_template", "trust_remote_code")
"""Settings of a model that is loaded here."""


@dataclass(frozen=True)
class Generated:
    """A generated text."""

    text: str
    """The text, without control tokens."""
    finish: Finish
    """How it ended."""
    margin: float | None = None
    """log p(A) - log p(B) at the letter of its verdict, in nats; None if it has no verdict or the engine does not know
    it."""
    prompt_tokens: int = 0
    """Tokens of the prompt; 0 in all samples of a prompt but the first, so that sums count each prompt once."""
    new_tokens: int = 0
    """Tokens of the text, with the one that ends it; 0 if the text is the one of an equal conversation."""


class Engine(Protocol):
    """Generates texts for conversations."""

    name: str
    """The name of the judge in judgments."""

    @property
    def tokenizer(self) -> PromptCounter:
        """Counts the tokens of prompts, and knows how many tokens the model can take."""
        ...

    @property
    def identity(self) -> str:
        """A text that changes whenever the answers may change; for a local model a hash of its weights."""
        ...

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What results record of the engine beside the name of its model."""
        ...

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: "Sampling",
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Yield (index, texts) for every conversation, in any sequence.

        Args:
            conversations: Messages; the last one is the user's.
            sampling: Length, temperature, top-p, and whether a text ends with its verdict.
            samples: Texts for each conversation.
            seed: Equal seeds give equal texts, whatever the other conversations are, up to rounding.
            done: Indices of conversations that have their answer; the engine may leave them out.
        """
        ...


@dataclass(frozen=True)
class EngineSpec:
    """A model that generates text, and how to load it.

    Each command that generates text has these fields as flags.
    """

    model: str
    """Hub name; Hugging Face folder, of a model or of a LoRA adapter; the folder of a run, or a checkpoint in it; or
    `nano`, the built-in small model. With an endpoint: the model's name there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """The dtype of the weights; `auto` is the one in which they were saved. Default: `auto` on a GPU, float32 on a CPU,
    which is slow in 16 bits."""
    device: str = "auto"
    """Device: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU), or mps."""
    quantization: Literal["nf4"] | None = None
    """Keep the weights of linear layers in 4 bits. An adapter that was trained on 4-bit weights gets them anyway."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs a CUDA GPU and its package."""
    batch_size: int | None = None
    """Texts generated at once by a model that is loaded here. Default: 16."""
    chat_template: str | None = None
    """A Jinja file in place of the tokenizer's own chat template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Defaults of the chat template's variables, such as enable_thinking: false."""
    endpoint: list[str] | str | None = None
    """Base URL of an OpenAI-compatible server that has the model, such as http://127.0.0.1:8000/v1; several URLs share
    the load. By default the model is loaded here."""
    requests: Requests = Requests()  # noqa: RUF009 (frozen)
    """How the endpoint is asked."""

    def __post_init__(self) -> None:
        longest = max(len(part.encode()) for part in self.model.split("/"))
        if not self.model.strip() or "\0" in self.model or longest > _LONGEST_NAME:
            raise UserError(f"model: found {self.model[:60]!r}, expected a hub name, a folder or a checkpoint")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size: found {self.batch_size}, expected 1 or more")
        if self.endpoint is None:
            for name in self.requests.changed():
                raise UserError(
                    f"requests.{name}: has no meaning for a model that is loaded here; give its endpoint too"
                )
            return
        base_urls(self.endpoint)
        for one in fields(self):
            if one.name in _LOCAL and getattr(self, one.name) != one.default:
                raise UserError(f"{one.name}: has no meaning with an endpoint, whose server decides it; leave it out")

    def changed(self) -> list[str]:
        """Names of the fields, other than the model, that do not have their default."""
        return [one.name for one in fields(self) if one.name != "model" and getattr(self, one.name) != one.default]

    def result_settings(self) -> dict[str, Any]:
        """The settings, other than the model and its dtype, that can change its texts; results record them."""
        return {name: getattr(self, name) for name in ("quantization", "chat_template", "chat_template_kwargs")}


def load_engine(spec: EngineSpec, tokenizer: "ChatTokenizer | None" = None, batch_size: int = 16) -> Engine:
    """The engine that `spec` describes: a model, loaded, or an endpoint, looked at.

    Args:
        spec: Model, dtype, device and batch size; or endpoint.
        tokenizer: The tokenizer to use in place of the model's own, unless an endpoint has it.
        batch_size: Texts generated at once if `spec` does not say.

    Raises:
        UserError: There is no such model or device, or the model cannot be loaded; the endpoint cannot be reached.
    """
    if spec.endpoint is not None:
        from judgelit.generation.endpoint import EndpointEngine

        return EndpointEngine.connect(spec)
    from judgelit.generation.loading import NamedModel, find_device
    from judgelit.generation.local import LocalEngine

    device = find_device(spec.device)
    found = NamedModel.find(spec, device)
    # The tokenizer goes first: a mistake in its settings is found before the weights are read.
    tokenizer = tokenizer or found.load_tokenizer(spec.chat_template, spec.chat_template_kwargs)
    model: Any = found.load_weights()
    return LocalEngine(model.to(device), tokenizer, spec.model, spec.batch_size or batch_size)

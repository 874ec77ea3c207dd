"""Chat tokenizer: messages and completions to token ids. No text can forge a control token."""

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xxhash

from judgelit.errors import UserError, first_line
from judgelit.records.records import Message
from judgelit.records.unicode import replace_surrogates

NANO = "nano"
NANO_FOLDER = Path(__file__).parent / "nano"
"""The built-in model for a start from scratch: its configuration and tokenizer, no weights."""

_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken")

# Private-use characters have no meaning in any script. One that a text does not hold marks where to cut it.
_MARKS = [chr(code) for code in range(0xE000, 0xE040)]


def model_folder(name_or_path: str) -> str:
    """Return the name or folder for Hugging Face's loaders: `nano` stands for the built-in folder."""
    return str(NANO_FOLDER) if name_or_path == NANO else name_or_path


@dataclass(frozen=True)
class ChatTokenizer:
    """A Hugging Face tokenizer with judgelit's rules for turning chats into ids.

    - The chat template is applied once, to the whole prompt. The completion's ids are appended to the prompt's ids, so
      the boundary between them is known, and training sees the ids that inference sees.
    - Text inside a message never becomes a control token: text that spells one is cut into ordinary tokens.
    - A completion ends with the model's end-of-turn token.
    """

    hf: Any
    """The transformers tokenizer."""
    context: int = 1 << 30
    """Tokens that the model can take, if its configuration says so."""

    @classmethod
    def load(
        cls, name_or_path: str, chat_template: str | None = None, trust_remote_code: bool = False
    ) -> "ChatTokenizer":
        """Load a tokenizer by hub name, folder or `nano`.

        Args:
            name_or_path: Hub name, local folder or `nano`. A folder of a LoRA adapter may lack a tokenizer; then its
                base's is loaded.
            chat_template: A Jinja file to use in place of the tokenizer's chat template.
            trust_remote_code: Whether the model's own Python code may run.

        Raises:
            UserError: There is no such tokenizer, or it has no chat template.
        """
        from huggingface_hub.errors import StrictDataclassError
        from lightning.pytorch.utilities import rank_zero_info
        from transformers import AutoConfig, AutoTokenizer

        folder = model_folder(name_or_path)
        local = Path(folder)
        base = _base_of_adapter(local)
        if local.is_dir() and not any(file for kind in _TOKENIZER_FILES for file in local.glob(kind)):
            if base is not None:
                rank_zero_info(
                    f"tokenizer: the adapter {name_or_path!r} holds none, so that of its base {base!r} is used"
                )
                return cls.load(base, chat_template, trust_remote_code)
            raise UserError(f"tokenizer {name_or_path!r}: no tokenizer files in that folder")
        if not local.exists() and folder.startswith(("./", "../", "/", "~")):
            raise UserError(f"tokenizer {name_or_path!r}: no such folder")
        try:
            hf = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(model_folder(base or folder), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, StrictDataclassError) as error:
            if not local.exists() and local.parent != Path() and local.parent.is_dir():
                raise UserError(f"tokenizer {name_or_path!r}: no such folder") from error
            if not local.exists() and isinstance(error, OSError) and "gated" not in str(error):
                raise UserError(
                    f"tokenizer {name_or_path!r}: no such folder, and the hub could not be reached or has no such model"
                ) from error
            raise UserError(f"tokenizer {name_or_path!r}: cannot be loaded: {first_line(error)}") from error
        if chat_template is not None:
            path = Path(chat_template)
            if not path.is_file():
                raise UserError(f"chat_template {chat_template!r}: no such file")
            try:
                hf.chat_template = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"chat_template {chat_template!r}: not UTF-8 text") from error
        if not hf.chat_template:
            raise UserError(
                f"tokenizer {name_or_path!r} has no chat template; give a Jinja file as `chat_template`, or start "
                "from an instruction-tuned model"
            )
        return cls(hf, min(hf.model_max_length, _context(config.get_text_config())))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the rendered conversation, up to the start of the assistant's turn."""
        return self._encode(self._render(messages, add_generation_prompt=True))

    def completion_ids(self, completion: str) -> list[int]:
        """Return the ids of the assistant's text and its end-of-turn token."""
        return [*self.text_ids(completion), self.end_of_turn_id]

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of plain text. None of them is a control token."""
        cut, marked = self._defuse([text])
        return self._encode((marked[0], cut))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids up to the end of the turn, without control tokens."""
        kept = []
        for token in ids:
            if token in self.stop_ids:
                break
            kept.append(token)
        return self.hf.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def raw_text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with control tokens."""
        return self.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that ids depend on: vocabulary, rules, control tokens and chat template.

        It does not depend on the folder that the tokenizer was loaded from.
        """
        parts = [
            self.hf.chat_template,
            {name: str(token) for name, token in self.hf.special_tokens_map.items()},
            sorted((index, repr(token)) for index, token in self.hf.added_tokens_decoder.items()),
            getattr(self.hf, "split_special_tokens", False),
        ]
        content = xxhash.xxh3_128(json.dumps(parts, sort_keys=True).encode())
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is not None:
            # Earlier calls have set its padding and truncation.
            state = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
            content.update(json.dumps(state).encode())
        else:
            # Without a backend, the code of the class makes the ids.
            content.update(inspect.getsource(type(self.hf)).encode())
            with TemporaryDirectory() as folder:
                self.hf.save_vocabulary(folder)
                for file in sorted(Path(folder).iterdir()):
                    content.update(file.name.encode() + file.read_bytes())
        return content.hexdigest()

    @cached_property
    def pad_id(self) -> int:
        """The id to pad with. Any id will do, since masks are made from lengths."""
        return next(i for i in (self.hf.pad_token_id, self.hf.eos_token_id, self.end_of_turn_id) if i is not None)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generated text: end of turn and end of text."""
        ids = dict.fromkeys([self.end_of_turn_id, self.hf.eos_token_id])
        return tuple(i for i in ids if i is not None)

    @cached_property
    def end_of_turn_id(self) -> int:
        """The control token that the chat template writes after an assistant's text; if none, the end-of-text token."""
        probe = "judgelit-end-of-turn"
        conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
        rendered, _ = self._render(conversation, add_generation_prompt=False)
        tail = self.hf(rendered[rendered.rindex(probe) + len(probe) :], add_special_tokens=False)["input_ids"]
        controls = set(self.control_ids)
        for token in tail:
            if token in controls:
                return token
        if self.hf.eos_token_id is None:
            raise UserError("the chat template closes no turn with a control token and the tokenizer has no eos_token")
        return self.hf.eos_token_id

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text and id of every control token.

        These are the tokenizer's special tokens, and added tokens in the chat template that are not declared special
        (`<think>` in some models). Other added tokens (runs of spaces, HTML tags) are ordinary text.
        """
        added = {token.content: (index, token.special) for index, token in self.hf.added_tokens_decoder.items()}
        named = set(self.hf.all_special_tokens)
        template = self.hf.chat_template if isinstance(self.hf.chat_template, str) else str(self.hf.chat_template)
        tokens = {
            text: index
            for text, (index, special) in added.items()
            if special or text in named or (len(text) > 1 and not text.isspace() and text in template)
        }
        for text in named - tokens.keys():
            tokens[text] = self.hf.convert_tokens_to_ids(text)
        return tokens

    @property
    def control_ids(self) -> list[int]:
        return list(self.control_tokens.values())

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        # A look-ahead also finds overlapping occurrences. Searching for the first character first is faster.
        tokens = sorted(self.control_tokens)
        if not tokens:
            return None
        firsts = "".join(re.escape(first) for first in sorted({token[0] for token in tokens}))
        rests = "|".join(re.escape(token[1:]) for token in tokens)
        return re.compile(f"[{firsts}](?={rests})")

    @cached_property
    def _control_beginnings(self) -> tuple[str, ...]:
        return tuple({token[:length] for token in self.control_tokens for length in range(1, len(token))})

    def _defuse(self, texts: Sequence[str]) -> tuple[str, list[str]]:
        """Return a mark and the texts with this mark inside each control token that they spell ("" if none)."""
        whole = [replace_surrogates(text) for text in texts]
        cuts = [self._cuts(text) for text in whole]
        if not any(cuts):
            return "", whole
        mark = next((mark for mark in _MARKS if not any(mark in text for text in whole)), None)
        if mark is None:
            raise UserError("a text holds all of U+E000 to U+E03F, private-use characters that no script uses")
        return mark, [mark.join(_pieces(text, places)) for text, places in zip(whole, cuts, strict=True)]

    def _cuts(self, text: str) -> list[int]:
        """Return the places where `text` must be cut so that no piece spells a control token."""
        if self._control_pattern is None:
            return []
        places = [found.start() + 1 for found in self._control_pattern.finditer(text)]
        # The text may begin a token that the next text ends. Templates strip blanks, so the cut is before them.
        end = len(text.rstrip())
        if text[max(0, end - 256) : end].endswith(self._control_beginnings):
            places.append(end)
        if self._spelled_after_normalisation:
            # Normalisation (NFKC, lower case) may make a token of text in which the search above finds none.
            ids = {token for piece in _pieces(text, places) for token in self._plain_ids(piece)}
            if ids & set(self.control_ids):
                return list(range(1, len(text)))
        return places

    @cached_property
    def _spelled_after_normalisation(self) -> bool:
        """Whether the tokenizer looks for some control token in normalised text."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return False
        return any(
            token.normalized and token.content in self.control_tokens for token in self.hf.added_tokens_decoder.values()
        )

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> tuple[str, str]:
        mark, contents = self._defuse([turn["content"] for turn in messages])
        turns = [{**turn, "content": content} for turn, content in zip(messages, contents, strict=True)]
        try:
            text = self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        except Exception as error:
            # Jinja templates raise for turns that they do not support (a system turn, two user turns in a row).
            roles = ", ".join(turn["role"] for turn in messages)
            raise UserError(f"the chat template refuses the turns ({roles}): {first_line(error)}") from error
        return text, mark

    def _encode(self, rendered: tuple[str, str]) -> list[int]:
        text, mark = rendered
        first, *others = text.split(mark) if mark else [text]
        return [*self._plain_ids(first), *(token for piece in others for token in self._continuation_ids(piece))]

    def _plain_ids(self, text: str) -> list[int]:
        # The template writes the BOS token, if the model has one. Adding special tokens here would double it.
        return self.hf(text, add_special_tokens=False)["input_ids"] if text else []

    def _continuation_ids(self, text: str) -> list[int]:
        """Return the ids of text that continues a word. Some tokenizers put a blank before the first word of a text."""
        anchor = self._plain_ids("\n")
        ids = self._plain_ids("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._plain_ids(text)


def _base_of_adapter(folder: Path) -> str | None:
    """The base model that a folder of a LoRA adapter names; None if the folder holds no adapter."""
    settings = folder / "adapter_config.json"
    return (
        json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path") if settings.is_file() else None
    )


def _pieces(text: str, places: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def _context(config: Any) -> int:
    """Return the most tokens for which a row's result does not depend on the other rows of its batch.

    LongRoPE and dynamic scaling change all position embeddings of a batch if one of its rows is longer than the
    model's original context (arXiv 2402.13753).
    """
    context: int = getattr(config, "max_position_embeddings", None) or 1 << 30
    rope = getattr(config, "rope_parameters", None) or {}
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if one.get("rope_type") in ("longrope", "dynamic"):
            context = min(context, one.get("original_max_position_embeddings") or context)
    return context

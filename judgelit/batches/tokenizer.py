"""Chat tokenizer: messages and completions to token ids. No text can forge a control token."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xxhash

from judgelit.batches.chat_template import (
    FIXED_DATE,
    read_template,
    refuse_partial_header,
    with_defaults,
    with_fixed_date,
)
from judgelit.batches.control_tokens import ControlTokens
from judgelit.batches.tokenizer_files import base_of_adapter, holds_tokenizer, load_files, model_folder, row_limit
from judgelit.errors import UserError, first_line
from judgelit.records.row_fields import Message
from judgelit.records.unicode import replace_surrogates

# Private-use characters have no meaning in any script. One that a text does not hold marks where to cut it.
_MARKS = [chr(code) for code in range(0xE000, 0xE040)]

_RULES = 2
"""Version of the rules by which this file turns texts into ids. Other rules need other token stores."""

_QUESTION: list[Message] = [{"role": "user", "content": "?"}]
_PROBE = "judgelit-probe"
"""A text that is looked for in a rendered chat."""


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
        cls,
        name_or_path: str,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        base: str | None = None,
    ) -> "ChatTokenizer":
        """Load a tokenizer by hub name, folder or `nano`.

        Args:
            name_or_path: Hub name, local folder or `nano`. A folder of a LoRA adapter may lack a tokenizer; then its
                base's is loaded.
            chat_template: A Jinja file to use in place of the tokenizer's chat template.
            trust_remote_code: Whether the model's own Python code may run.
            chat_template_kwargs: Defaults of the chat template's variables, such as {"enable_thinking": False}.
            base: The model whose configuration says how many tokens it can take. By default the one in that folder
                or, for an adapter, its base.

        Raises:
            UserError: There is no such tokenizer, it does not fit the model, or its chat template cannot be used.
        """
        from lightning.pytorch.utilities import rank_zero_info

        folder = model_folder(name_or_path)
        local = Path(folder)
        base = base or base_of_adapter(local)
        if (local / "tekken.json").is_file() and not (local / "tokenizer.json").is_file():
            raise UserError(
                f"tokenizer {name_or_path!r}: found Mistral's tekken.json alone, expected tokenizer.json, which "
                "transformers reads; take a version of the model that has it"
            )
        if local.is_dir() and not holds_tokenizer(local):
            if base_of_adapter(local) is not None and base is not None:
                rank_zero_info(
                    f"tokenizer: the adapter {name_or_path!r} holds none, so that of its base {base!r} is used"
                )
                return cls.load(base, chat_template, trust_remote_code, chat_template_kwargs)
            raise UserError(f"tokenizer {name_or_path!r}: no tokenizer files in that folder")
        if not local.exists() and folder.startswith(("./", "../", "/", "~")):
            raise UserError(f"tokenizer {name_or_path!r}: no such folder")
        hf, config = load_files(name_or_path, base, trust_remote_code)
        if chat_template is not None:
            hf.chat_template = read_template(chat_template)
        if not hf.chat_template:
            raise UserError(
                f"tokenizer {name_or_path!r} has no chat template; give a Jinja file as `chat_template`, or start "
                "from an instruction-tuned model"
            )
        given = with_defaults(hf.chat_template, chat_template_kwargs or {})
        hf.chat_template = with_fixed_date(given)
        if hf.chat_template != given:
            rank_zero_info(
                f"tokenizer {name_or_path!r}: the date that its chat template takes from strftime_now is fixed to "
                f"{FIXED_DATE}, here and in the export, so that prompts do not change with the day; for another date, "
                "set the template's variable in chat_template_kwargs (often date_string), or give a chat_template "
                "without strftime_now"
            )
        chat = cls(hf, min(hf.model_max_length, row_limit(config)))
        chat._refuse_partial_header()
        chat._refuse_more_ids_than(getattr(config, "vocab_size", None), name_or_path)
        return chat

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the rendered conversation, up to the start of the assistant's turn."""
        return self._encode(self._render(messages, add_generation_prompt=True))

    def count(self, messages: Sequence[Message]) -> int:
        """Return the number of ids of the rendered conversation."""
        return len(self.prompt_ids(messages))

    def completion_ids(self, completion: str) -> list[int]:
        """Return the ids of the assistant's text and its end-of-turn token."""
        return [*self.text_ids(completion), self.end_of_turn_id]

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of plain text. None of them is a control token."""
        text = replace_surrogates(text)
        return self._encode(_pieces(text, self._cuts(text)))

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
            _RULES,
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
        rendered = self._apply([*_QUESTION, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        tail = rendered.rpartition(_PROBE)[2]
        controls = set(self.controls.ids.values())
        for token in self._plain_ids(tail):
            if token in controls:
                return token
        if self.hf.eos_token_id is None:
            raise UserError("the chat template closes no turn with a control token and the tokenizer has no eos_token")
        return self.hf.eos_token_id

    @cached_property
    def controls(self) -> ControlTokens:
        """The tokens that only the chat template may write."""
        return ControlTokens.of(self.hf)

    def _refuse_partial_header(self) -> None:
        """Raise UserError if a prompt with its completion is not the chat that the template writes."""
        answer: Message = {"role": "assistant", "content": _PROBE}
        chat = self._apply([*_QUESTION, answer], add_generation_prompt=False)
        refuse_partial_header(self._apply(_QUESTION, add_generation_prompt=True), chat, _PROBE)

    def _refuse_more_ids_than(self, rows: int | None, name: str) -> None:
        """Raise UserError if an id of a batch is beyond the model's `rows` embeddings.

        Added tokens that the template does not write never come into a batch.
        """
        if rows is None:
            return
        controls = self.controls.ids
        words = [index for text, index in self.hf.get_vocab().items() if text not in controls]
        largest = max([*words, *self.prompt_ids(_QUESTION), *self.stop_ids, self.pad_id])
        if largest >= rows:
            raise UserError(
                f"tokenizer {name!r}: found the id {largest} of {self.raw_text([largest])!r}, expected less than the "
                f"{rows} rows of the model's embeddings; use the model's own tokenizer, or resize the embeddings and "
                "save the model again"
            )

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[str]:
        """Return the rendered conversation in pieces, cut wherever a turn's text spells a control token.

        The template itself drops the reasoning of earlier assistant's turns in some models, so it must see the whole
        tags. The cuts of these turns are marked before the tags. If this changes which control tokens the template
        writes, the cuts are marked inside the tags, so that the template does not see any.
        """
        if any(turn["role"] == "system" and turn["content"].strip() for turn in messages) and self._drops_system:
            raise UserError(
                "the chat template leaves out the text of a system turn, expected one that writes it; give another "
                "template as `chat_template`, or remove the system text"
            )
        turns = [{**turn, "content": replace_surrogates(turn["content"])} for turn in messages]
        cuts = [self._cuts(turn["content"]) for turn in turns]
        if not any(cuts):
            return [self._apply(turns, add_generation_prompt)]
        mark = next((mark for mark in _MARKS if not any(mark in turn["content"] for turn in turns)), None)
        if mark is None:
            raise UserError("a text holds all of U+E000 to U+E03F, private-use characters that no script uses")
        inside = self._apply_marked(turns, cuts, mark, add_generation_prompt)
        places = [
            [start for start, _ in self.controls.spelled(turn["content"])] if turn["role"] == "assistant" else some
            for turn, some in zip(turns, cuts, strict=True)
        ]
        if places == cuts:
            return inside
        first, *others = self._apply_marked(turns, places, mark, add_generation_prompt)
        outside = [first]
        for piece in others:
            if self.controls.begins(piece):
                outside[-1] += piece[0]
                piece = piece[1:]
            outside.append(piece)
        return outside if self._written(outside) == self._written(inside) else inside

    @cached_property
    def _drops_system(self) -> bool:
        """Whether the chat template leaves out a system turn without an error."""
        turns: list[Message] = [{"role": "system", "content": _PROBE}, *_QUESTION]
        try:
            return _PROBE not in self._apply(turns, add_generation_prompt=True)
        except UserError:
            return False

    def _written(self, pieces: Sequence[str]) -> list[str]:
        """The control tokens that stand in the pieces: those that the template has written."""
        return [token for piece in pieces for _, token in self.controls.spelled(piece)]

    def _apply_marked(
        self, turns: Sequence[Message], places: Sequence[Sequence[int]], mark: str, add_generation_prompt: bool
    ) -> list[str]:
        """Render turns with a mark at some places of each text, and return the pieces between the marks."""
        marked = [
            {**turn, "content": mark.join(_pieces(turn["content"], some))}
            for turn, some in zip(turns, places, strict=True)
        ]
        return self._apply(marked, add_generation_prompt).split(mark)

    def _apply(self, turns: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        except Exception as error:
            # Jinja templates raise for turns that they do not support (a system turn, two user turns in a row).
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(f"the chat template refuses the turns ({roles}): {first_line(error)}") from error

    def _cuts(self, text: str) -> list[int]:
        """Return the places where `text` must be cut so that no piece spells a control token."""
        places = [start + 1 for start, _ in self.controls.spelled(text)]
        # The text may begin a token that the next text ends. Templates strip blanks, so the cut is before them.
        end = len(text.rstrip())
        if self.controls.may_begin_at_end(text[:end]):
            places.append(end)
        if self._spelled_after_normalisation:
            # Normalisation (NFKC, lower case) may make a token of text in which the search above finds none.
            ids = {token for row in self._ids_of(_pieces(text, places)) for token in row}
            if ids & set(self.controls.ids.values()):
                return list(range(1, len(text)))
        return places

    @cached_property
    def _spelled_after_normalisation(self) -> bool:
        """Whether the tokenizer looks for some control token in normalised text."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return False
        return any(
            token.normalized and token.content in self.controls.ids for token in self.hf.added_tokens_decoder.values()
        )

    def _encode(self, pieces: Sequence[str]) -> list[int]:
        """Return the ids of a text from its pieces.

        Some tokenizers put a blank before the first word of a text. So all pieces but the first are encoded behind a
        line break.
        """
        first, *others = pieces
        ids = self._plain_ids(first)
        if not others:
            return ids
        # Texts that spell one token again and again give the same piece again and again.
        unique = list(dict.fromkeys(others))
        anchor = self._plain_ids("\n")
        encoded = dict(zip(unique, self._ids_of(["\n" + piece for piece in unique]), strict=True))
        for piece in unique:
            found = encoded[piece]
            encoded[piece] = found[len(anchor) :] if found[: len(anchor)] == anchor else self._plain_ids(piece)
        return [*ids, *(token for piece in others for token in encoded[piece])]

    def _plain_ids(self, text: str) -> list[int]:
        return self._ids_of([text])[0]

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        # The template writes the BOS token, if the model has one. Adding special tokens here would double it.
        # A tokenizer that gets no text at all fails.
        return self.hf(list(texts), add_special_tokens=False)["input_ids"]


def _pieces(text: str, places: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]

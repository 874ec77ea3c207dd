"""Read the prompts, answers and conversations of public data sets as messages."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from judgelit.errors import UserError
from judgelit.records.row_fields import Message, bad_field
from judgelit.records.unicode import replace_surrogates_in

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bing"), "assistant"),
}
_SPEAKERS = {"user": "Human", "assistant": "Assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_SPEAKER = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_PYTHON_TURNS = re.compile(r"\[?\s*\{\s*'(role|content|from|value)'\s*:")
_KNOWN_ROLES = {*_ROLES, "tool", "function", "observation", "function_call"}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TOOLS = ("tool_calls", "function_call")
_WEIGHTS = ("weight", "train")
_TEXT_PARTS = ("text", "input_text", "output_text", None)


def decode_turns(value: object, name: str, at: str) -> object:
    """`value`, or the messages in it if it is a text that holds messages, or one message, as JSON.

    Raises:
        UserError: The text holds messages as Python prints them, which is not JSON.
    """
    text = value.strip() if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else ""
    if text[-1:] not in ("]", "}") or not any(
        f"{mark}{key}{mark}" in text for key in ("role", "from") for mark in "'\""
    ):
        return value
    try:
        decoded = replace_surrogates_in(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        if _PYTHON_TURNS.match(text):
            expected = "a list of messages, or one as JSON text; this is how Python prints one"
            raise bad_field(at, name, value, expected) from error
        return value
    return decoded if _are_turns([decoded] if isinstance(decoded, Mapping) else decoded) else value


def _are_turns(value: object) -> bool:
    """Whether a value from JSON is a list of messages, with a text and a known role among them."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        return False
    roles = [turn.get("role") or turn.get("from") for turn in value]
    return (
        all(isinstance(role, str) for role in roles)
        and any(role.strip().lower() in _KNOWN_ROLES for role in roles)
        and any("content" in turn or "value" in turn for turn in value)
    )


def read_turns(value: object, name: str, at: str, *, blank: bool = False) -> list[Message]:
    """Read a conversation whose turns have `role` and `content`, or `from` and `value`.

    Args:
        value: A list of turns, or one turn.
        name: Name of the field, for error messages.
        at: Place of the row, for error messages.
        blank: Accept empty user turns.

    Raises:
        UserError: Not a conversation, or a user turn is empty.
    """
    turns = [value] if isinstance(value, Mapping) and ("role" in value or "from" in value) else value
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise bad_field(at, name, value, "a list of messages")
    messages = []
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        if not isinstance(turn, Mapping):
            raise bad_field(at, where, turn, "a message with 'role' and 'content' or 'from' and 'value'")
        _refuse_unread(turn, where, at)
        speaker, said = _names(turn)
        role, content = turn.get(speaker), turn.get(said)
        known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if known is None:
            raise bad_field(at, f"{where}.{speaker}", role, "one of " + ", ".join(map(repr, _ROLES)))
        text = _content(content, f"{where}.{said}", at)
        if known == "user" and not blank and not text.strip():
            raise bad_field(at, f"{where}.{said}", text, "text that is not empty")
        messages.append({"role": known, "content": text})
    return messages


def _names(turn: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the fields of a turn that hold the speaker and the text: `role`, `content` or `from`, `value`."""
    sharegpt = turn.get("role") is None and ("from" in turn or "value" in turn)
    speakers, texts = (("from", "role"), ("value", "content")) if sharegpt else (("role", "from"), ("content", "value"))
    speaker, said = (
        next((name for name in names if turn.get(name) is not None), names[0]) for names in (speakers, texts)
    )
    return speaker, said


def _refuse_unread(turn: Mapping[str, Any], where: str, at: str) -> None:
    """Reject a turn that has text beside its content."""
    for name in (*_REASONING, *_TOOLS):
        if turn.get(name) not in (None, "", [], {}):
            advice = "the reasoning as part of the content" if name in _REASONING else "no tools, which are not read"
            raise bad_field(at, f"{where}.{name}", turn[name], advice)


def _content(value: object, name: str, at: str) -> str:
    """The text of a turn, which is a string or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise bad_field(at, name, value, "text")
    for index, part in enumerate(value):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise bad_field(at, f"{name}[{index}]", part, "a part that is text, with 'type': 'text' and 'text'")
    return "".join(part["text"] for part in value)


def read_prompt(value: object, name: str, at: str) -> list[Message]:
    """Read a prompt that ends with a user turn: a text, a `Human: ... Assistant: ...` text, or a conversation."""
    if isinstance(value, str):
        if not value.strip():
            raise bad_field(at, name, value, "text that is not empty")
        turns = read_dialogue(value) or []
        if turns and turns[-1] == {"role": "assistant", "content": ""}:
            turns.pop()
        if not turns or turns[-1]["role"] != "user":
            return [{"role": "user", "content": value}]
        refuse_blank_turns(turns, value, name, at)
        return turns
    turns = read_turns(value, name, at)
    if turns[-1]["role"] != "user":
        raise _last_turn(at, name, turns[-1], "user")
    return turns


def read_answer(value: object, name: str, at: str) -> str:
    """Read an answer: a text or a single assistant turn."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)  # PandaLM's file has `true` for the answer "True".
    if value is None:
        raise bad_field(at, name, value, "text or a single assistant turn")
    refuse_list_of_answers(value, name, at)
    turns = read_turns(value, name, at)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise bad_field(at, name, value, "text or a single assistant turn")
    return turns[0]["content"]


def refuse_list_of_answers(value: object, name: str, at: str) -> None:
    """Reject a list of texts or of conversations in place of one answer, as in RewardBench 2 and RM-Bench."""
    if isinstance(value, list) and value and all(isinstance(item, str | list) for item in value):
        expected = "one answer; write a row for each pair of a better and a worse answer"
        raise UserError(f"{at}: field {name!r}: found a list of answers, {len(value)} of them, expected {expected}")


def read_exchange(value: object, name: str, at: str) -> tuple[list[Message], str]:
    """Read a conversation that ends with an answer, as the turns before it and the answer."""
    *prompt, last = read_turns(value, name, at)
    if last["role"] != "assistant":
        raise _last_turn(at, name, last, "assistant")
    if not prompt:
        raise bad_field(at, name, value, "a conversation with turns before the answer")
    return prompt, last["content"]


def read_weights(turns: Sequence[Mapping[str, Any]], roles: Sequence[str], name: str, at: str) -> list[bool] | None:
    """Whether each turn is trained on, as its `weight` (0 or 1) or `train` says; None if no answer has either.

    As in OpenAI's fine-tuning form, an answer without a weight has the weight 1 if another one has a weight. Weights of
    the user's turns mean nothing.

    Raises:
        UserError: A weight is neither 0 nor 1, no answer is trained on, or one to which nothing was asked.
    """
    marks = [next((mark for mark in _WEIGHTS if turn.get(mark) is not None), None) for turn in turns]
    answers = [number for number, role in enumerate(roles) if role == "assistant"]
    marked = [(number, mark) for number in answers if (mark := marks[number]) is not None]
    if not marked:
        return None
    asked = roles.index("user") if "user" in roles else len(roles)
    trained = [role == "assistant" and number > asked for number, role in enumerate(roles)]
    for number, mark in marked:
        value, where = turns[number][mark], f"{name}[{number}].{mark}"
        if value not in (0, 1):
            raise bad_field(at, where, value, "0 or 1")
        if value and number < asked:
            raise bad_field(at, where, value, "0, since the user has not spoken before")
        trained[number] = bool(value)
    if not any(trained):
        number, mark = marked[-1]
        raise bad_field(at, f"{name}[{number}].{mark}", turns[number][mark], "an answer to train on")
    return trained


def read_dialogue(text: str) -> list[Message] | None:
    """Read a text of the form `Human: ... Assistant: ...`, with a blank line before each turn, or return None.

    Consecutive turns of one speaker become one turn.
    """
    text = "\n\n" + text.lstrip()
    if not text.startswith("\n\nHuman:") or "\n\nAssistant:" not in text:
        return None
    _, *parts = _SPEAKER.split(text)
    messages: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role, content = _ROLES[speaker.lower()], said.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    return messages


def read_helpsteer_turns(text: str) -> list[Message] | None:
    """Read a prompt of several turns in HelpSteer2's form, or return None for a prompt of one turn.

    A line `<extra_id_1>Assistant` or `<extra_id_1>User` is before each turn but the first, which is the user's.
    """
    first, *parts = _HELPSTEER_SPEAKER.split(text)
    if not parts:
        return None
    turns = [{"role": "user", "content": first.strip()}]
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": _ROLES[speaker.lower()], "content": said.strip()})
    return turns


def refuse_blank_turns(turns: Sequence[Message], text: str, name: str, at: str) -> None:
    """Reject the turns of a dialogue if the user says nothing in one of them."""
    if any(turn["role"] == "user" and not turn["content"].strip() for turn in turns):
        raise bad_field(at, name, text, "a dialogue in which no turn of the Human is empty")


def part_conversations(first: Sequence[Message], second: Sequence[Message]) -> tuple[list[Message], str, str]:
    """Split two conversations into the prompt that they share and the rest of each.

    The prompt ends with a user turn. The rest is usually one answer. Several turns become a text with the speakers'
    names.
    """
    shared = 0
    for count, (one, other) in enumerate(zip(first, second, strict=False), 1):
        if one != other:
            break
        if one["role"] == "user":
            shared = count
    return list(first[:shared]), _transcript(first[shared:]), _transcript(second[shared:])


def part_texts(first: str, second: str) -> tuple[str, str, str]:
    """Split two texts into the words that both begin with and the rest of each.

    This is the implicit prompt of TRL, but split between words, not inside a word.
    """
    shared = os.path.commonprefix([first, second])  # noqa: RUF071 (on characters, not path parts)
    begun = "" if not shared or shared[-1].isspace() else shared.split()[-1]
    cut = len(shared) - len(begun)
    return shared[:cut].strip(), first[cut:], second[cut:]


def _last_turn(at: str, name: str, turn: Message, expected: str) -> UserError:
    return UserError(f"{at}: field {name!r}: the last turn is the {turn['role']}'s, expected the {expected}'s")


def _transcript(turns: Sequence[Message]) -> str:
    texts = [turn["content"] if index == 0 else _spoken(turn) for index, turn in enumerate(turns)]
    return "\n\n".join(texts)


def _spoken(turn: Message) -> str:
    return f"{_SPEAKERS.get(turn['role'], turn['role'])}: {turn['content']}"

"""The forms of public data sets: which fields hold the prompt, the answers and the label.

To add a form, write one function and add one line to a table at the end of this file:

- `EXCHANGES`: a prompt and its answer, for SFT examples;
- `COMPARISONS`: a prompt, a better and a worse answer, for preference examples and pairs;
- `JUDGED`: a prompt, two answers and a label, for pairs;
- `ANSWERED`: a prompt and a list of answers, for answer sets;
- `ASKED`: a prompt, with or without answers, for prompts.

The function takes a row without its null fields, and the place of the row for error messages. It returns None if the
row has another form, and raises UserError if the row has this form but is invalid. The first function of a table that
returns a value wins. The key in the table describes the form in error messages. `judgelit.records.conversations` has
functions that read prompts, answers and turns. Lists of messages that are stored as JSON text are already decoded.
`complete_prompt` adds the row's system text and earlier turns to the prompt. For example:

    def _my_form(row: Row, at: str) -> Comparison | None:
        if not {"query", "good", "bad"} <= row.keys():
            return None
        prompt = read_prompt(row["query"], "query", at)
        good, bad = (read_answer(row[name], name, at) for name in ("good", "bad"))
        return Comparison(prompt, good, bad, ("good", "bad"))

    COMPARISONS = {..., "query + good + bad": _my_form}
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, get_args

from judgelit.errors import UserError
from judgelit.records.conversations import (
    part_conversations,
    part_texts,
    read_answer,
    read_dialogue,
    read_exchange,
    read_helpsteer_turns,
    read_prompt,
    read_turns,
    read_weights,
    refuse_blank_turns,
    refuse_list_of_answers,
)
from judgelit.records.records import Label
from judgelit.records.row_fields import Message, Row, bad_field, label_text

IDS = ("id", "pair_id", "prompt_id")
KEPT = {"category": ("category", "bias", "scenario"), "subset": ("subset",), "source": ("source",)}
"""Fields that are copied from a row to its record, and their names in public data sets."""
AUTHORS = {
    "author_a": ("author_a", "chosen_model", "model_a", "response_model"),
    "author_b": ("author_b", "rejected_model", "model_b", "response_model"),
}
"""Fields of a pair that name the answers' authors, and their names in public data sets."""
_LETTERS: dict[str, Label] = {
    **dict.fromkeys(("a", "model_a", "a>b"), "A"),
    **dict.fromkeys(("b", "model_b", "b>a"), "B"),
    **dict.fromkeys(("tie", "a=b", "tie (bothbad)", "tie (inconsistent)"), "tie"),
}
_UNREAD = ("tools", "functions", "images", "image", "videos", "audios", "chat_template_kwargs")
"""Fields that change the prompt and that are not read."""
_ONE_TWO: dict[str, Label] = {"1": "A", "2": "B"}
_ZERO_TIE: dict[str, Label] = {"0": "tie", **_ONE_TWO}
_TWO_TIE: dict[str, Label] = {"0": "A", "1": "B", "2": "tie"}

_ANSWER_LISTS = ("answers", "responses", "completions")
_ANSWER_TEXTS = ("answer", "response", "text", "content")
_LISTED = {"ranks": "rank", "scores": "score", "models": "model"}
"""What may be known of each answer of a list: the name of the row's list, and that of an answer's own field."""


class Exchange(NamedTuple):
    """A prompt and its answer."""

    prompt: Sequence[Message]
    answer: str
    name: str
    """The row's field that holds the answer."""
    trained: Sequence[bool] | None = None
    """For each turn, the answer included, whether its weight says to train on it; None if no turn has a weight."""


class Comparison(NamedTuple):
    """A prompt and two answers, the better one first."""

    prompt: Sequence[Message]
    chosen: str
    rejected: str
    names: tuple[str, str] = ("chosen", "rejected")
    """The row's fields that hold the two answers."""


class Judged(NamedTuple):
    """A prompt, two answers and the label of the better one."""

    prompt: Sequence[Message]
    answer_a: str
    answer_b: str
    label: Label
    names: tuple[str, str]
    """The row's fields that hold the two answers."""


class Answered(NamedTuple):
    """A prompt and a list of answers to it."""

    prompt: Sequence[Message]
    answers: Sequence[str]
    meta: Mapping[str, object]
    """Ranks, scores and models of the answers: a list of as many values for each name."""


# Prompt and answer.


def _completion(row: Row, at: str) -> Exchange | None:
    name = "prompt" if "prompt" in row else "messages"
    if not {name, "completion"} <= row.keys():
        return None
    if name == "messages" and isinstance(row["completion"], bool | int | float):
        raise bad_field(at, "completion", row["completion"], "text or a single assistant turn")
    prompt = _whole_prompt(row, name, at)
    return Exchange(prompt, read_answer(row["completion"], "completion", at), "completion")


def _messages(row: Row, at: str) -> Exchange | None:
    for name in ("messages", "conversations", "conversation"):
        if name in row:
            prompt, answer = read_exchange(row[name], name, at)
            roles = [*(turn["role"] for turn in prompt), "assistant"]
            return Exchange(prompt, answer, name, read_weights(row[name], roles, name, at))
    return None


def _alpaca(row: Row, at: str) -> Exchange | None:
    prompt = _prompt(row, at) if {"instruction", "output"} <= row.keys() else None
    if prompt is None:
        return None
    return Exchange(prompt, read_answer(row["output"], "output", at), "output")


# Chosen and rejected.


def _explicit_prompt(row: Row, at: str) -> Comparison | None:
    if not {"chosen", "rejected"} <= row.keys():
        return None
    several = any(isinstance(row[name], list) and len(row[name]) > 1 for name in ("chosen", "rejected"))
    # `messages` beside whole conversations is a copy of one of them, as in UltraFeedback.
    prompt = _prompt({**row, "messages": None} if several else row, at)
    if prompt is None:
        return None
    if several:
        whole = _whole_conversations(row, at)
        asked = [turn["content"].strip() for turn in whole.prompt if turn["role"] == "user"]
        if prompt[-1]["content"].strip() not in asked:
            raise UserError(
                f"{at}: the conversations in fields 'chosen' and 'rejected' do not repeat the row's prompt; "
                "expected conversations that do, or single answers"
            )
        return whole
    chosen, rejected = (read_answer(row[name], name, at) for name in ("chosen", "rejected"))
    return Comparison(prompt, chosen, rejected)


def _implicit_turns(row: Row, at: str) -> Comparison | None:
    if isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list):
        return _whole_conversations(row, at)
    return None


def _implicit_dialogue(row: Row, at: str) -> Comparison | None:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    first, second = read_dialogue(chosen), read_dialogue(rejected)
    if first is None or second is None:
        return None
    for name, turns in (("chosen", first), ("rejected", second)):
        if turns[-1]["role"] != "assistant":
            raise bad_field(at, name, row[name][-40:], "a dialogue that ends with an answer of the Assistant")
    parted = Comparison(*part_conversations(first, second))
    if not parted.prompt:
        raise _different_prompts(at)
    refuse_blank_turns(parted.prompt, chosen, "chosen", at)
    return parted


def _implicit_text(row: Row, at: str) -> Comparison | None:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    known = {"chosen", "rejected", *IDS, *(name for names in KEPT.values() for name in names)}
    if any(isinstance(value, str) and name not in known and "model" not in name for name, value in row.items()):
        return None  # A text field with an unknown name may be the prompt, which must not be lost.
    prompt, first, second = part_texts(chosen, rejected)
    if chosen != rejected and not prompt:
        raise _different_prompts(at)
    return Comparison([{"role": "user", "content": prompt}], first, second)


def _whole_conversations(row: Row, at: str) -> Comparison:
    for name in ("chosen", "rejected"):
        refuse_list_of_answers(row[name], name, at)
    prompt, chosen = read_exchange(row["chosen"], "chosen", at)
    other_prompt, rejected = read_exchange(row["rejected"], "rejected", at)
    if prompt != other_prompt:
        raise _different_prompts(at)
    return Comparison(prompt, chosen, rejected)


def _different_prompts(at: str) -> UserError:
    return UserError(
        f"{at}: fields 'chosen' and 'rejected' begin with different prompts; expected two answers to one prompt, "
        "or a field 'prompt'"
    )


# Two answers and a label.


def _lettered(row: Row, at: str) -> Judged | None:
    for first, second in (("answer_a", "answer_b"), ("response_a", "response_b"), ("response_A", "response_B")):
        for label in ("label", "winner"):
            found = _judged(row, at, first, second, label, _LETTERS)
            if found is not None:
                return found
    return None


def _numbered(row: Row, at: str) -> Judged | None:
    for first, second in (("output_1", "output_2"), ("response1", "response2"), ("response_1", "response_2")):
        found = _judged(row, at, first, second, "label", _ONE_TWO)
        if found is not None:
            return found
    return None


def _auto_j(row: Row, at: str) -> Judged | None:
    return _judged(row, at, "response 1", "response 2", "label", _TWO_TIE)


def _panda_lm(row: Row, at: str) -> Judged | None:
    annotators = ("annotator1", "annotator2", "annotator3")
    if not set(annotators) <= row.keys():
        return None
    votes = [_choice(row, name, at, _ZERO_TIE) for name in annotators]
    label = max(votes, key=votes.count)
    if votes.count(label) == 1:
        raise bad_field(at, "annotator1 to 3", votes, "two that agree")
    return _judged({**row, "majority": label}, at, "response1", "response2", "majority", _LETTERS)


def _help_steer(row: Row, at: str) -> Judged | None:
    if "preference_strength" not in row:
        return None
    strength = row["preference_strength"]
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -3 <= strength <= 3:
        raise bad_field(at, "preference_strength", strength, "a number from -3 to 3")
    label = "A" if strength < 0 else "B" if strength > 0 else "tie"
    prompt = row.get("prompt")
    turns = read_helpsteer_turns(prompt) if isinstance(prompt, str) else None
    row = {**row, "sign": label} | ({"prompt": turns} if turns else {})
    return _judged(row, at, "response_1", "response_2", "sign", _LETTERS)


def _mt_bench(row: Row, at: str) -> Judged | None:
    names = ("conversation_a", "conversation_b")
    if not {*names, "winner"} <= row.keys():
        return None
    turn = row.get("turn")
    end = 2 * turn if isinstance(turn, int) and turn > 0 else None  # A judgment of turn 1 has not seen turn 2.
    first, second = (read_turns(row[name], name, at)[:end] for name in names)
    prompt, answer_a, answer_b = part_conversations(first, second)
    if not prompt:
        raise bad_field(at, "conversation_b", second[0]["content"], "a conversation that begins as conversation_a does")
    return Judged(prompt, answer_a, answer_b, _choice(row, "winner", at, _LETTERS), names)


# A list of answers.


def _answers(row: Row, at: str) -> Answered | None:
    name = next((name for name in _ANSWER_LISTS if isinstance(row.get(name), list)), None)
    prompt = _prompt(row, at) if name is not None else None
    if name is None or prompt is None:
        return None
    items = row[name]
    answers = [_listed_answer(item, f"{name}[{index}]", at) for index, item in enumerate(items)]
    meta: dict[str, object] = {}
    for plural, single in _LISTED.items():
        values = row.get(plural)
        if values is None and all(isinstance(item, Mapping) and item.get(single) is not None for item in items):
            values = [item[single] for item in items]
        if isinstance(values, list):
            if len(values) != len(items):
                raise bad_field(at, plural, values, f"{len(items)} values, one for each of the {name}")
            if any(isinstance(value, bytes) for value in values):
                raise bad_field(at, plural, values, "numbers or texts")
            meta[plural] = values
    return Answered(prompt, answers, meta)


def _listed_answer(item: object, name: str, at: str) -> str:
    """The text of an item of a list of answers: a text, an assistant's turn, or an object that has the text."""
    if isinstance(item, Mapping) and item.get("role") is None and item.get("from") is None:
        for field in _ANSWER_TEXTS:
            if isinstance(item.get(field), str):
                return str(item[field])
        raise bad_field(at, name, item, f"a text, or an object with {' or '.join(map(repr, _ANSWER_TEXTS))}")
    return read_answer(item, name, at)


# A prompt, with or without answers.


def _asked(row: Row, at: str) -> Sequence[Message] | None:
    if not row.keys() & {"prompt", "question", "instruction"}:
        for name in ("conversations", "conversation", "messages"):
            if isinstance(row.get(name), list):
                turns = read_turns(row[name], name, at)
                known = turns[-1]["role"] == "assistant"
                return read_prompt(turns[:-1] if known else turns, name, at)
    return _prompt(row, at)


def _shared_prompt(row: Row, at: str) -> Sequence[Message] | None:
    for form in (_implicit_turns, _implicit_dialogue, _implicit_text):
        if (found := form(row, at)) is not None:
            return found.prompt
    found_pair = _mt_bench({**row, "winner": "tie"}, at)
    return None if found_pair is None else found_pair.prompt


EXCHANGES: dict[str, Callable[[Row, str], Exchange | None]] = {
    "prompt or messages + completion": _completion,
    "messages or conversations that end with an answer": _messages,
    "instruction + output": _alpaca,
}
COMPARISONS: dict[str, Callable[[Row, str], Comparison | None]] = {
    "prompt, question, instruction, messages or conversations + chosen + rejected": _explicit_prompt,
    "chosen + rejected as conversations": _implicit_turns,
    "chosen + rejected as 'Human: ... Assistant: ...' dialogues": _implicit_dialogue,
    "chosen + rejected as texts that begin with their prompt": _implicit_text,
}
JUDGED: dict[str, Callable[[Row, str], Judged | None]] = {
    "question or prompt + answer_a + answer_b (or response_a, response_b) + label or winner": _lettered,
    "instruction or input + output_1 + output_2 (or response1, response2) + label": _numbered,
    "instruction + response1 + response2 + annotator1 to 3": _panda_lm,
    "prompt + 'response 1' + 'response 2' + label": _auto_j,
    "prompt + response_1 + response_2 + preference_strength": _help_steer,
    "conversation_a + conversation_b + winner": _mt_bench,
}
ANSWERED: dict[str, Callable[[Row, str], Answered | None]] = {
    "question, prompt, instruction or messages + answers, responses or completions, a list": _answers,
}
ASKED: dict[str, Callable[[Row, str], Sequence[Message] | None]] = {
    "question, prompt, instruction, input, messages or conversations": _asked,
    "chosen + rejected, or conversation_a + conversation_b, that begin with their prompt": _shared_prompt,
}


def complete_prompt(row: Row, turns: Sequence[Message], at: str) -> list[Message]:
    """The prompt with the row's system text and earlier turns before it.

    Raises:
        UserError: The row has something that belongs to its prompt and cannot be read, such as tools.
    """
    for name in _UNREAD:
        if not _is_blank(row.get(name)):
            raise bad_field(at, name, row[name], f"a row without {name}, which would be lost")
    earlier = [turn for name in ("context", "history") for turn in _earlier_turns(row, name, at)]
    prompt = [*turns]
    if earlier:
        roles = [turn["role"] for turn in (earlier[0], *prompt)]
        if roles[1:] != ["user"] and (roles[1:] != ["system", "user"] or roles[0] == "system"):
            name = "context" if _is_blank(row.get("history")) else "history"
            raise bad_field(at, name, row[name], "no earlier turns in it, since the prompt has some too")
        prompt[-1:-1] = earlier
    for name in ("system", "system_prompt"):
        system = row.get(name, "")
        if not isinstance(system, str):
            raise bad_field(at, name, system, "text")
        if system.strip() and prompt[0]["role"] != "system":
            prompt.insert(0, {"role": "system", "content": system})
        elif system.strip() and system.strip() != prompt[0]["content"].strip():
            raise bad_field(at, name, system, "the row's other system text again, or none; two of them are not joined")
    return prompt


def _earlier_turns(row: Row, name: str, at: str) -> list[Message]:
    """The turns of a list of messages, or of a list of [question, answer] lists, as in Alpaca's `history`."""
    value = row.get(name)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if _is_blank(value):
        return []
    if not isinstance(value, Sequence) or not all(isinstance(turn, list) for turn in value):
        return read_turns(value, name, at, blank=True)
    turns = []
    for index, exchange in enumerate(value):
        if len(exchange) != 2 or not all(isinstance(text, str) for text in exchange):
            raise bad_field(at, f"{name}[{index}]", exchange, "a list of a question and its answer")
        turns += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
    return turns


def _is_blank(value: object) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _prompt(row: Row, at: str) -> list[Message] | None:
    """The prompt from the first field that has one, or None."""
    for name in ("prompt", "question", "instruction", "conversations", "conversation", "input", "messages"):
        if row.get(name) is not None:
            return _whole_prompt(row, name, at)
    return None


def _whole_prompt(row: Row, name: str, at: str) -> list[Message]:
    """The prompt from the field `name`; an instruction with its input.

    Raises:
        UserError: The field is invalid, or another field has text that would be lost.
    """
    given = _input(row, at)
    others = {"question": row.get("question"), "instruction": row.get("instruction"), "input": given}
    value = others.pop(name, row[name])
    if name == "instruction" and isinstance(value, str) and isinstance(given, str):
        del others["input"]
        value = "\n\n".join(text for text in (value, given) if text.strip())
    prompt = read_prompt(value, name, at)
    for other, text in others.items():
        if isinstance(text, str) and not any(text.strip() in turn["content"] for turn in prompt):
            raise bad_field(at, other, text, f"text that {name!r} has too; put the whole prompt into {name!r}")
    return prompt


def _input(row: Row, at: str) -> object:
    """The field `input`; a number beside an instruction as text."""
    given = row.get("input")
    if not isinstance(row.get("instruction"), str) or isinstance(given, str) or _is_blank(given):
        return given
    if not isinstance(given, bool | int | float):
        raise bad_field(at, "input", given, "text or a number")
    missing = isinstance(given, float) and math.isnan(given)  # as tables store it
    return None if missing else str(given)


def _judged(row: Row, at: str, first: str, second: str, label: str, labels: Mapping[str, Label]) -> Judged | None:
    """Read the prompt, two answers and the label from fields with these names, or None if one is missing."""
    prompt = _prompt(row, at) if {first, second, label} <= row.keys() else None
    if prompt is None:
        return None
    answer_a, answer_b = (read_answer(row[name], name, at) for name in (first, second))
    return Judged(prompt, answer_a, answer_b, _choice(row, label, at, labels), (first, second))


def read_label(row: Row, name: str, at: str) -> Label:
    """The label in a field, in upper or lower case."""
    return _choice(row, name, at, _LETTERS)


def _choice(row: Row, name: str, at: str, labels: Mapping[str, Label]) -> Label:
    label = labels.get(label_text(row[name]))
    if label is None:
        choices = get_args(Label) if labels is _LETTERS else labels
        raise bad_field(at, name, row[name], "one of " + ", ".join(map(repr, choices)))
    return label

"""Chat templates: variables set to a default, a fixed date, and a check that a template suits training."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judgelit.errors import UserError

# Values that every program gives to a template by itself. A default for one of them would have no effect.
_GIVEN = {"messages", "add_generation_prompt", "continue_final_message", "tools", "documents"}

# A tag around reasoning: <think>, </think>, [THINK], <|START_THINKING|>, <seed:think>, <thought>.
_REASONING_TAG = re.compile(r"[<\[]/?\|?/?[a-z:_]*(?:think|thought)[a-z:_]*\|?[>\]]", re.IGNORECASE)

_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_STRING = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)

FIXED_DATE = "26 July 2024"
"""The date that templates write, the one that Llama's fall back to where a program cannot tell the date."""
_DATE_PARTS = {
    **{"%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26"},
    **{"%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00"},
}
"""Parts of `FIXED_DATE`, by the code of strftime."""
_DEFINES_DATE = re.compile(r"\{%[-+]?\s*macro\s+strftime_now\b")


def read_template(path: str) -> str:
    """Read a chat template from a Jinja file.

    Raises:
        UserError: There is no such file, or it is not UTF-8 text.
    """
    if not Path(path).is_file():
        raise UserError(f"chat_template {path!r}: no such file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"chat_template {path!r}: not UTF-8 text") from error


def with_defaults(template: Any, values: Mapping[str, Any]) -> Any:
    """Return a chat template in which some variables have another default.

    The defaults are part of the template's text. So every program that renders the exported template uses them, unless
    it gives the variable a value.

    Args:
        template: The Jinja text, or several by name, as transformers allows.
        values: Values by the variable's name, such as {"enable_thinking": False}.

    Raises:
        UserError: The template does not use one of the variables, or a value has no Jinja form.
    """
    if isinstance(template, dict):
        return {name: with_defaults(text, values) for name, text in template.items()}
    code = _names_of(template)
    lines = []
    for name, value in values.items():
        at = f"chat_template_kwargs.{name}"
        if not name.isidentifier() or name in _GIVEN or re.search(rf"(?<![\w.]){re.escape(name)}\b", code) is None:
            raise UserError(
                f"{at}: found a variable that the chat template does not take from outside, expected one that it "
                "uses; leave it out"
            )
        lines.append(f"{{% set {name} = {name} | default({_literal(value, at)}) %}}\n")
    # Templates are rendered with `trim_blocks`, so no line break comes out of these lines.
    return "".join(lines) + template


def with_fixed_date(template: Any) -> Any:
    """Return a chat template that writes `FIXED_DATE` where it would write the date of the day (`strftime_now`).

    Prompts then do not depend on the day: stored ids stay those of a new prompt, and a judge is asked as it was
    trained. The date is part of the template's text, so every program that renders the exported template writes it. A
    template that names no date, or that has been changed before, is returned unchanged.

    Args:
        template: The Jinja text, or several by name, as transformers allows.
    """
    if isinstance(template, dict):
        return {name: with_fixed_date(text) for name, text in template.items()}
    if re.search(r"\bstrftime_now\b", _names_of(template)) is None or _DEFINES_DATE.search(template):
        return template
    parts = "".join(f" | replace({json.dumps(code)}, {json.dumps(value)})" for code, value in _DATE_PARTS.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{template}"


def _names_of(template: str) -> str:
    """The code of a template: neither the text that it writes nor its string literals."""
    return _STRING.sub("", " ".join(_CODE.findall(template)))


def _literal(value: Any, at: str) -> str:
    """A value as Jinja text."""
    if value is None:
        return "none"
    if isinstance(value, bool | int | float | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(_literal(one, at) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(str(name), at)}: {_literal(one, at)}' for name, one in value.items())}}}"
    raise UserError(f"{at}: found {value!r}, expected text, a number, true, false, null, a list or an object")


def refuse_partial_header(prompt: str, chat: str, probe: str) -> None:
    """Check that a prompt with a completion is what the template writes for the whole chat.

    Blanks may differ, and so may tags of reasoning: templates of thinking models write an empty block of reasoning, or
    open one, on one side alone.

    Args:
        prompt: A user's turn, rendered with the generation prompt.
        chat: The same turn and the assistant's answer, rendered as a chat.
        probe: The text of the answer.

    Raises:
        UserError: The generation prompt is not the whole header of the assistant's turn.
    """
    before, answered, _ = chat.rpartition(probe)
    if not answered:
        raise UserError(
            "chat_template: found a template that does not write the assistant's text, expected one that does"
        )
    if _skeleton(prompt) != _skeleton(before):
        shared = next((n for n, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), None)
        shared = min(len(prompt), len(before)) if shared is None else shared
        raise UserError(
            f"chat_template: the generation prompt writes {prompt[shared:][:80]!r} where a chat has "
            f"{before[shared:][:80]!r} before the assistant's text, expected the same; give a template whose "
            "add_generation_prompt writes the whole header of the assistant's turn, as a Jinja file"
        )


def _skeleton(text: str) -> str:
    return "".join(_REASONING_TAG.sub("", text).split())

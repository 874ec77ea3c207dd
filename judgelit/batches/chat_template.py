"""Chat templates: variables set to a default, and a check that a template suits training."""

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
    # Names in the template's code: not in the text that it writes, nor in its string literals.
    code = _STRING.sub("", " ".join(_CODE.findall(template)))
    lines = []
    for name, value in values.items():
        at = f"chat_template_kwargs.{name}"
        if not name.isidentifier() or name in _GIVEN or re.search(rf"(?<![\w.]){re.escape(name)}\b", code) is None:
            raise UserError(
                f"{at}: found a variable that the chat template does not take from outside, expected one that it "
                "uses, such as enable_thinking; leave it out"
            )
        lines.append(f"{{% set {name} = {name} | default({_literal(value, at)}) %}}\n")
    # Templates are rendered with `trim_blocks`, so no line break comes out of these lines.
    return "".join(lines) + template


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

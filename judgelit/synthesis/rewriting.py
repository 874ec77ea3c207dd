"""Judge prompts in other words: a teacher rewrites the templates.

The recipe had every judge prompt rewritten by a model (RISE-Judge, arXiv 2502.11689). Here the teacher rewrites the
text of a template, with placeholders where question, answers, role, criteria and format stand, and each pair draws one
of the rewrites. So the teacher never sees the judged text, which could give it orders, nor the label, which it could
reveal. And a few rewrites of each template serve any number of pairs.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.quotations import reasons
from judgelit.judging.template import Language, Template, draw, variables
from judgelit.records.records import PreferencePair
from judgelit.records.row_fields import Message
from judgelit.synthesis.question_words import words
from judgelit.synthesis.teachers import EngineTeacher, Teacher

SAMPLING = Sampling(max_new_tokens=2048, temperature=1.0, top_p=0.95, stop_at_verdict=False)
"""How rewrites are sampled. A rewrite holds verdicts, which must not end it."""
_JUDGED = ("question", "answer_a", "answer_b")
_FIELDS = (*_JUDGED, "role", "criteria", "format")
_PLACEHOLDERS = {name: f"{{{name.upper()}}}" for name in _FIELDS}
_FIND_PLACEHOLDER = re.compile(r"\{([A-Z_]+)\}")
_FIND_REWRITE = re.compile(r"<prompt>\s*(.*?)\s*</prompt>", re.S)
_VERDICTS = re.compile(r"\[\[.*?\]\]", re.S)
_LONGEST = 4
"""A rewrite may have so many times the characters of the template."""
_LEAST_ROOM = 256
"""Fewest tokens that the teacher's context must leave for a rewrite."""
_CONTEXT = {
    "en": "{% if context %}\nEarlier turns of the conversation:\n{% for turn in context %}\n{{ turn.role }}: "
    "{{ turn.content }}\n{% endfor %}\n\nThe question that the answers are about:\n{% endif %}\n",
    "zh": "{% if context %}\n此前的对话：\n{% for turn in context %}\n"
    '{{ {"system": "系统", "user": "用户", "assistant": "助手"}[turn.role] }}：{{ turn.content }}\n{% endfor %}\n\n'
    "两个回答所针对的问题：\n{% endif %}\n",
}
_REQUEST: dict[Language, str] = {
    "en": """\
Rewrite the prompt below, which asks a judge to compare two answers. Keep its meaning and change its wording, the \
sequence of its instructions and its layout, so that it reads as if somebody else had written it.

Rules:
- Keep each of {placeholders} exactly once, unchanged, and answer A before answer B.
- The judge must still reason first and end with the verdict [[A]] or [[B]]. Mention [[A]] and [[B]] equally often.
- Do not hint at either answer, and add no question or answer of your own.
- Write in English.
- Write the new prompt between <prompt> and </prompt>.

<prompt>
{text}
</prompt>""",
    "zh": """\
请改写下面的提示语，它要求裁判比较两个回答。保持原意，改变措辞、各条要求的次序和版式，使它读起来像出自另一个人之手。

要求：
- {placeholders} 各保留一次，原样不变，回答A在回答B之前。
- 裁判仍须先说明理由，最后以 [[A]] 或 [[B]] 给出结论。[[A]] 与 [[B]] 出现的次数相同。
- 不要偏向任何一个回答，不要自行添加问题或回答。
- 用中文书写。
- 新的提示语写在 <prompt> 与 </prompt> 之间。

<prompt>
{text}
</prompt>""",
}


@dataclass(frozen=True)
class Rewrites:
    """Rewrites of templates."""

    by_template: Mapping[str, Sequence[Template | None]] = field(default_factory=dict)
    """The rewrites of each template by its id; None where one has failed the check."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """Number of failed rewrites by reason."""
    answers: Sequence[Generated] = ()
    """What the teacher wrote."""

    def drawn(self, template: Template, key: str, seed: int) -> tuple[Template, int | None]:
        """The template in other words, and the number of the drawn rewrite.

        The template itself and None if the drawn rewrite has failed the check, or if there is none.

        Args:
            template: The template, whose role, criteria and format are kept.
            key: What the draw is for, such as a pair's id. The same key and seed draw the same rewrite.
            seed: Seed of the draw.
        """
        choices = self.by_template.get(template.id, ())
        number = draw(range(len(choices)), f"rewrite/{key}", seed) if choices else 0
        chosen = choices[number] if choices else None
        return (template, None) if chosen is None else (replace(template, body=chosen.body), number)


def rewrite_templates(
    templates: Mapping[str, Template], teacher: Teacher, count: int, journal: Path, seed: int
) -> Rewrites:
    """Let the teacher rewrite each template `count` times. Its answers are kept in the journal.

    Raises:
        UserError: The teacher is no model, or no template can be rewritten.
    """
    if not isinstance(teacher, EngineTeacher):
        raise UserError(
            f"rewrite_prompts: found the teacher {teacher.name!r}, expected EngineTeacher, a model that can write; "
            "choose it or leave rewrite_prompts out"
        )
    able = {name: text for name, template in templates.items() if (text := with_placeholders(template)) is not None}
    if not able:
        raise UserError(
            f"rewrite_prompts: found no template that can be rewritten among {', '.join(sorted(templates))}, expected "
            "some that ask for [[A]] or [[B]] and use each value once; choose others or leave rewrite_prompts out"
        )
    names = sorted(able)
    requests = [_request(templates[name], able[name]) for name in names]
    engine = JournaledEngine(teacher.engine, journal, "rewriter")
    found: dict[str, Sequence[Template | None]] = {}
    failed: Counter[str] = Counter()
    failed["of templates that cannot be rewritten"] = count * (len(templates) - len(able))
    answers: list[Generated] = []
    longest = max(map(engine.tokenizer.count, requests))
    room = engine.tokenizer.context - longest
    if room < _LEAST_ROOM:
        raise UserError(
            f"rewrite_prompts: {teacher.name}: found a context of {engine.tokenizer.context} tokens, expected "
            f"{longest + _LEAST_ROOM} or more; choose a teacher with a longer one or leave rewrite_prompts out"
        )
    sampling = replace(SAMPLING, max_new_tokens=min(SAMPLING.max_new_tokens, room))
    for index, generated in engine.answer(requests, sampling, samples=count, seed=seed):
        template = templates[names[index]]
        checked = [read_rewrite(answer.text, template) for answer in generated]
        failed.update(one for one in checked if isinstance(one, str))
        found[template.id] = [None if isinstance(one, str) else one for one in checked]
        answers += generated
    return Rewrites(found, {reason: number for reason, number in sorted(failed.items()) if number}, answers)


def with_placeholders(template: Template) -> str | None:
    """The template's prompt with a placeholder for each value.

    None if it cannot be rewritten: it asks for no verdict form, uses a value twice, or holds a placeholder itself.
    """
    named = replace(template, **{name: _PLACEHOLDERS[name] for name in ("role", "criteria", "format")})  # type: ignore[arg-type]
    question, answer_a, answer_b = (_PLACEHOLDERS[name] for name in _JUDGED)
    pair = PreferencePair("template", question, answer_a, answer_b, "A")
    text = named.render(pair)[-1]["content"].strip()
    return text if _has_placeholders(text, template) and _asks_for_verdict(text) else None


def read_rewrite(answer: str, template: Template) -> Template | str:
    """The rewritten template from the teacher's answer, or why it cannot be used.

    The last marked text is read. Checked are: every placeholder once, with answer A before answer B; [[A]] and [[B]]
    equally often and no other verdict; the language; the length; and that something was changed.
    """
    # A rewrite in reasoning, or before another one, is a draft.
    text = _FIND_REWRITE.findall("" if reasons(answer) else re.split(r"</think(?:ing)?>", answer)[-1])
    original = with_placeholders(template)
    if not text or original is None:
        return "without a marked prompt"
    rewritten = text[-1]
    if not _has_placeholders(rewritten, template):
        return "with other placeholders"
    if rewritten.index(_PLACEHOLDERS["answer_a"]) > rewritten.index(_PLACEHOLDERS["answer_b"]):
        return "with answer B first"
    if not _asks_for_verdict(rewritten):
        return "without the verdict format"
    if len(rewritten) > _LONGEST * len(original):
        return "too long"
    if (_chinese(rewritten) > 0.2) != (template.language == "zh"):
        return "in another language"
    if words(rewritten, signs=True) == words(original, signs=True):
        return "unchanged"
    return replace(template, body=_body(rewritten, template.language))


def _request(template: Template, text: str) -> tuple[Message, ...]:
    placeholders = ", ".join(_PLACEHOLDERS[name] for name in _used(template))
    content = _REQUEST[template.language].format(placeholders=placeholders, text=text)
    return ({"role": "user", "content": content},)


def _has_placeholders(text: str, template: Template) -> bool:
    """Whether a text has the placeholder of each value that the template uses, once, and no other."""
    return sorted(_FIND_PLACEHOLDER.findall(text)) == sorted(name.upper() for name in _used(template))


def _asks_for_verdict(text: str) -> bool:
    """Whether a text names both verdicts equally often, and no other."""
    verdicts = Counter(_VERDICTS.findall(text))
    return set(verdicts) == {"[[A]]", "[[B]]"} and verdicts["[[A]]"] == verdicts["[[B]]"]


def _used(template: Template) -> list[str]:
    """The values that the template's text uses and a rewrite must keep."""
    used = variables(template.body)
    return [name for name in _FIELDS if name in used]


def _body(rewritten: str, language: Language) -> str:
    """The Jinja2 text of a rewrite: its own text is literal, so nothing in it is template syntax."""
    parts = []
    for number, part in enumerate(_FIND_PLACEHOLDER.split(rewritten)):
        if number % 2 == 0:
            # unicode_escape is how Jinja2 reads a string; it escapes all but the quotation mark.
            literal = part.encode("unicode_escape").decode("ascii").replace('"', "\\x22")
            parts.append('{{ "' + literal + '" }}' if part else "")
        else:
            before = _CONTEXT[language] if part == "QUESTION" else ""
            parts.append(f"{before}{{{{ {part.lower()} }}}}")
    return "".join(parts)


def _chinese(text: str) -> float:
    """Share of the words that are Chinese characters."""
    tokens = words(_VERDICTS.sub("", _FIND_PLACEHOLDER.sub("", text)))
    return sum("\u3400" <= token[0] <= "\u9fff" for token in tokens) / max(1, len(tokens))

"""Judge templates: Jinja2 files with a front matter that turn a pair into a prompt.

To add a template, write one file `<id>.jinja` in `templates/`, or in a folder that `Templates.folder` names:

    ---
    language: en
    role: You are an impartial judge.
    criteria: correctness, then clarity
    format: free analysis
    style: careful  # or brief: a judgment of one or two sentences
    system: ""      # optional: the system text, which may be empty; without it the chat template decides
    ---
    {{ role }} ... {{ question }} ... {{ answer_a }} ... {{ answer_b }} ... end with [[A]] or [[B]].

The text after the front matter must use `question`, `answer_a` and `answer_b`. It may use `context` (earlier turns,
each with `role` and `content`) and the `role`, `criteria`, `format` and `language` of the front matter. A template
without `context` refuses pairs that have earlier turns.

A template asks for both verdicts, [[A]] and [[B]], or for neither if it is for a judge that was trained on the form.

Judged text is a value of the template: template syntax inside it has no effect.
"""

import difflib
import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar, get_args

import jinja2
import yaml
from jinja2 import meta, nodes

from judgelit.errors import UserError, first_line
from judgelit.judging.sandbox import BoundedEnvironment, LimitError, render
from judgelit.records.records import PreferencePair
from judgelit.records.row_fields import ROLES, Message, bad_field, choice_field, text_field
from judgelit.yaml_files import check_yaml

Language = Literal["en", "zh"]
Style = Literal["careful", "brief"]
T = TypeVar("T")

DEFAULT_TEMPLATE = "rise"
"""The shipped template that is closest to the prompt of RISE-Judge."""

SHIPPED = Path(__file__).parent / "templates"
"""Folder of the shipped templates."""
FIELDS = ("language", "role", "criteria", "format", "style", "system")
"""Fields of the front matter. `style` and `system` are optional."""
_VALUES = {"question", "answer_a", "answer_b", "context", "role", "criteria", "format", "language"}
_ENVIRONMENT = BoundedEnvironment()


@dataclass(frozen=True)
class Template:
    """A judge template."""

    id: str
    """Name of the file without its suffix."""
    language: Language
    role: str
    """Who the judge is, in one line."""
    criteria: str
    """What makes an answer better, in one line."""
    format: str
    """Form of the judgment, in a few words."""
    body: str
    """Jinja2 text after the front matter."""
    style: Style = "careful"
    """Length of the judgment: brief is one or two sentences."""
    system: str | None = None
    """System text before the prompt, which may be empty. None: the chat template decides."""

    @property
    def front_matter(self) -> dict[str, str]:
        """The fields of the front matter, without those that are not set."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    def render(self, pair: PreferencePair) -> tuple[Message, ...]:
        """The prompt for `pair`, with `answer_a` first: one user turn, which includes the earlier turns.

        Before it stands the template's system text, if it has one.

        Raises:
            UserError: The pair has earlier turns and the template does not use `context`, or the template fails, takes
                too long or makes too much text.
        """
        if pair.context and not _takes_context(self.body):
            raise UserError(f"judge template {self.id!r} has no 'context', but pair {pair.id!r} has earlier turns")
        try:
            text = _rendered(self, pair)
        except Exception as error:  # A template can raise any Python exception.
            where = f"judge template {self.id!r}, line {_line_of(error)} of its text, with pair {pair.id!r}"
            raise UserError(f"{where}: {_said(error)}") from None
        turn = {"role": "user", "content": text}
        return (turn,) if self.system is None else ({"role": "system", "content": self.system}, turn)


def load_templates(names: Sequence[str], folder: str | None = None) -> dict[str, Template]:
    """The named templates by id, sorted by id.

    Args:
        names: Ids, or patterns such as `en-*`.
        folder: Folder of the user's templates, beside the shipped ones.

    Raises:
        UserError: A broken template, a user's template with the id of a shipped one, or a name without a template.
    """
    templates = read_folder(SHIPPED)
    if folder is not None:
        for template_id, template in read_folder(Path(folder)).items():
            if template_id in templates:
                path = Path(folder) / f"{template_id}.jinja"
                raise UserError(f"{path}: the id {template_id!r} is a shipped template's; rename the file")
            templates[template_id] = template
    if not names:
        raise UserError("no judge template named; expected at least one of " + ", ".join(sorted(templates)))
    chosen = {template_id for name in names for template_id in _matching(name, templates)}
    return {template_id: templates[template_id] for template_id in sorted(chosen)}


def draw_template(templates: Mapping[str, Template], key: str, seed: int) -> Template:
    """One of `templates`, drawn uniformly. The same `key` (such as a pair's id) and `seed` draw the same one."""
    return templates[draw(sorted(templates), key, seed)]


def draw(values: Sequence[T], key: str, seed: int) -> T:
    """One of `values`, drawn uniformly. The same `key` and `seed` draw the same one."""
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode("utf-8", "surrogatepass")).digest()
    return values[int.from_bytes(digest) % len(values)]


def _rendered(template: Template, pair: PreferencePair) -> str:
    values = {
        "question": pair.question,
        "answer_a": pair.answer_a,
        "answer_b": pair.answer_b,
        "context": pair.context,
        "role": template.role,
        "criteria": template.criteria,
        "format": template.format,
        "language": template.language,
    }
    return render(_compiled(template.body), values)


@lru_cache(maxsize=256)
def _compiled(body: str) -> jinja2.Template:
    return _ENVIRONMENT.compiled(body)


@lru_cache(maxsize=256)
def variables(body: str) -> frozenset[str]:
    """The values that the text of a template uses, such as `question` and `role`."""
    return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(body)))


def _takes_context(body: str) -> bool:
    return "context" in variables(body)


def _matching(name: str, templates: Mapping[str, Template]) -> list[str]:
    if name in templates:
        return [name]
    if found := [template_id for template_id in templates if fnmatch.fnmatchcase(template_id, name)]:
        return found
    nearest = difflib.get_close_matches(name, templates, n=1, cutoff=0.0)[0]
    raise UserError(f"no judge template {name!r}; the nearest is {nearest!r}; all: {', '.join(sorted(templates))}")


def read_folder(folder: Path) -> dict[str, Template]:
    """All templates in a folder, by id.

    Raises:
        UserError: There is no such folder, it has no template, or one is broken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with judge templates, *.jinja")
    paths = sorted(folder.glob("*.jinja"))
    if not paths:
        raise UserError(f"{folder}: no judge template; expected files named *.jinja")
    return {path.stem: _read(path) for path in paths}


def _read(path: Path) -> Template:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    opening, _, rest = text.partition("\n")
    front, closing, body = rest.partition("\n---\n")
    if opening.rstrip() != "---" or not closing:
        raise UserError(f"{path}:1: no front matter; expected YAML between two lines '---' at the top of the file")
    template = _with_front_matter(path, front, body)
    _check(path, template, first_line=text.count("\n", 0, len(text) - len(body)))
    return template


def _with_front_matter(path: Path, front: str, body: str) -> Template:
    try:
        check_yaml(front)
        row = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # PyYAML raises all of these for values such as `!!int abc` or `2024-99-99`.
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark else 1
        what = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}:{line}: front matter is not YAML: {what}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}:1: front matter is not made of 'field: value' lines; expected {', '.join(FIELDS)}")

    def at(name: str) -> str:
        lines = (number for number, line in enumerate(front.splitlines(), start=2) if line.startswith(f"{name}:"))
        return f"{path}:{next(lines, 1)}"

    for name in map(str, row):
        if name not in FIELDS:
            raise UserError(f"{at(name)}: field {name!r} is unknown; expected one of {', '.join(FIELDS)}")
    role = text_field(row, "role", at("role")).strip()
    if "\n" in role:
        raise bad_field(at("role"), "role", role, "one line")
    return Template(
        id=path.stem,
        language=choice_field(row, "language", at("language"), get_args(Language)),
        role=role,
        criteria=text_field(row, "criteria", at("criteria")).strip(),
        format=text_field(row, "format", at("format")).strip(),
        body=body,
        style=choice_field({"style": "careful", **row}, "style", at("style"), get_args(Style)),
        system=text_field(row, "system", at("system"), empty=True) if "system" in row else None,
    )


def _check(path: Path, template: Template, first_line: int) -> None:
    """Reject a broken template when it is read, not in the middle of a run."""

    def refused(line: int, problem: str) -> UserError:
        return UserError(f"{path}:{first_line + line}: {problem}")

    try:
        tree = _ENVIRONMENT.parse(template.body)
        unknown = meta.find_undeclared_variables(tree) - _VALUES - set(_ENVIRONMENT.globals)
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                raise refused(node.lineno, f"unknown variable {node.name!r}; known: {', '.join(sorted(_VALUES))}")
        texts = [_rendered(template, pair) for pair in _probes(has_context=_takes_context(template.body))]
    except UserError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise refused(error.lineno, error.message or "not a Jinja2 template") from None
    except Exception as error:  # A template can raise any Python exception.
        raise refused(_line_of(error), _said(error)) from None
    for name in ("question", "answer_a", "answer_b"):
        if any(_probe(name) not in text for text in texts):
            raise refused(1, f"field {name!r}: found nothing, expected '{{{{ {name} }}}}' in the text")
    for verdict, other in (("[[A]]", "[[B]]"), ("[[B]]", "[[A]]")):
        if any(other in text and verdict not in text for text in texts):
            raise refused(1, f"the text asks for {other} and not for {verdict}; expected both, or neither")


def _probe(name: str) -> str:
    return f"<the probe's {name}>"


def _probes(has_context: bool) -> list[PreferencePair]:
    pair = PreferencePair("probe", _probe("question"), _probe("answer_a"), _probe("answer_b"), "A")
    context = tuple({"role": role, "content": _probe(role)} for role in ROLES)
    return [pair, replace(pair, context=context)] if has_context else [pair]


def _said(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) if isinstance(error, LimitError) else f"{type(error).__name__}: {error}"


def _line_of(error: BaseException) -> int:
    """The line of the template that raised `error`. Jinja2 adds its templates to the traceback."""
    line, frame = 1, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line

"""Templates are bounded in size and time, and ordinary templates are not restricted."""

import time

import pytest

from judgelit.errors import UserError
from judgelit.judging import sandbox
from judgelit.judging.template import Template, load_templates
from judgelit.records.records import PreferencePair

PAIR = PreferencePair("p1", "Two\nlines", "first", "second", "A")

TOO_LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'.center(width=10**10) }}",
    "{{ 'ab'|attr('ljust')(10**10) }}",
    "{{ ['a']|map('center', 10**10)|list }}",
    "{% filter center(10**10) %}a{% endfilter %}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%10000000000d'|format(1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**10) }}",
    "{{ question|indent(10**10) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "{{ range(99999)|join('a' * 10**6) }}",
    "{{ [1]|batch(10**10, 1)|list }}",
    "{{ 2**(10**9) }}",
    "{{ (1).to_bytes(10**10) }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=3) %}{% for i in range(100) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
    "{% for i in range(9000) %}{{ 'abcdefghij' * 1000 }}{% endfor %}",
    "{{ range(9000)|map('string')|map('center', 10**6)|list|length }}",
    "{{ ([[0] * 10**6] * 9000)|sum(start=[])|length }}",
    "{{ ([[0] * 10**6] * 9000)|sum('x', [])|length }}",
]
TOO_LONG = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ ([range(99999)] * 10**5)|map('sum')|sum }}",
    "{{ ([range(99999)] * 10**5)|map('sort')|map('max')|list|length }}",
    "{{ range(99999)|map('string')|unique|list|length }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
]
ORDINARY = {
    "{{ 'ab' * 3 }}": "ababab",
    "{% for i in range(3) %}{{ loop.index * 2 }}{% if not loop.last %}, {% endif %}{% endfor %}": "2, 4, 6",
    "{{ question|indent(2) }}": "Two\n  lines",
    "{{ '%s: %5.2f' % (answer_a, 3.14159) }}": "first:  3.14",
    "{{ '{:>3}|'.format(1) }}": "  1|",
    "{{ [answer_a, answer_b]|join(' or ') }}": "first or second",
    "{{ ', '.join([answer_a, answer_b]) }}": "first, second",
    "{{ question|replace('Two', 'Three') }}": "Three\nlines",
    "{{ 'x'|center(5) }}|": "  x  |",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(answer_a) }}": "<first>",
    "{% set s = answer_a ~ '!' %}{{ s }}": "first!",
    "{{ question.splitlines()|length }}": "2",
    "{{ range(9)|map('string')|join }}": "012345678",
    "{{ [3, 1, 2]|sort|list }}": "[1, 2, 3]",
    "{{ [{'n': 2}, {'n': 3}]|sum(attribute='n') }}": "5",
    "{{ [{'n': 2}, {'n': 3}]|map(attribute='n')|select('odd')|list }}": "[3]",
    "{% for turns in range(5)|batch(2) %}{{ turns|length }}{% endfor %}": "221",
    "{% for group in [{'r': 'a'}, {'r': 'b'}]|groupby('r') %}{{ group.grouper }}{% endfor %}": "ab",
    "{{ 'abc'|list|join('-') }}": "a-b-c",
}


def render(body: str, pair: PreferencePair = PAIR) -> str:
    return Template("mine", "en", "Judge", "truth", "free", body).render(pair)[0]["content"]


@pytest.mark.parametrize("body", [*TOO_LARGE, *TOO_LONG])
def test_a_template_without_bounds_is_refused_in_one_line(body: str) -> None:
    start = time.process_time()
    with pytest.raises(UserError, match="judge template 'mine', line 1 of its text, with pair 'p1': ") as refused:
        render(body)
    assert "\n" not in str(refused.value)
    assert time.process_time() - start < 2


def test_slow_turns_end_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"takes more than 0\.2 seconds"):
        render("{% for i in range(9999) %}{% set x = 7**30000 %}{% endfor %}")


@pytest.mark.parametrize(("body", "text"), ORDINARY.items())
def test_an_ordinary_template_is_not_restricted(body: str, text: str) -> None:
    assert render(body) == text


def test_long_answers_raise_the_limit() -> None:
    long = "x" * 9_000_000
    assert render("{{ answer_a }}{{ answer_b }}", PreferencePair("p", "q", long, "y", "A")) == long + "y"


def test_a_folder_with_such_a_template_is_refused_when_it_is_read(tmp_path) -> None:
    body = "{{ question }}{{ answer_a }}\n{{ 'a' * 10**10 }}{{ answer_b }}"
    head = "---\nlanguage: en\nrole: J\ncriteria: c\nformat: f\n---\n"
    (tmp_path / "mine.jinja").write_text(head + body, encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jinja:8: makes a text or list of more than"):
        load_templates(["mine"], str(tmp_path))


def test_a_template_that_fails_on_one_pair_names_both() -> None:
    with pytest.raises(UserError, match="'mine', line 2 of its text, with pair 'p1': ZeroDivisionError"):
        render("{{ question }}\n{{ 1 // (answer_a|length - 5) }}")

"""The answers of every kind agree with a second computation that shares no code with the package."""

import contextlib
import io
import random
import re
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from judgelit.synthesis.tasks.kinds import KINDS, Problem


def problems(kind: str, count: int = 60) -> list[Problem]:
    """`count` problems of each difficulty."""
    known = KINDS[kind]
    return [
        known.make(random.Random(f"{kind}/{difficulty}/{number}"), difficulty)
        for difficulty in known.difficulties
        for number in range(count)
    ]


def value_of(expression: str) -> int:
    assert re.fullmatch(r"[\d ×+-]+", expression), expression
    return eval(expression.replace("×", "*"))


def arithmetic(question: str, answer: str) -> bool:
    if question.startswith("Start"):
        start, *rest = re.findall(r"(Start with|Add|Subtract|Multiply by) (\d+)\.", question)
        total = int(start[1])
        for verb, number in rest:
            total = {"Add": total + int(number), "Subtract": total - int(number)}.get(verb, total * int(number))
    else:
        total = value_of(re.search(r"\d[\d ×+-]*\d", question)[0])
    return int(re.findall(r"\d+", answer)[-1]) == total


def sorting(question: str, answer: str) -> bool:
    phrase, _, items = question.partition(": ")
    reverse = "largest to smallest" in phrase or "reverse" in phrase
    key = str
    if "numbers" in phrase:
        key = (lambda item: (item[-1], int(item))) if "last digit" in phrase else float
    elif "by length" in phrase:
        key = lambda item: (len(item), item)  # noqa: E731
    return answer.rpartition(": ")[2].split(", ") == sorted(items.split(", "), key=key, reverse=reverse)


def counting(question: str, answer: str) -> bool:
    given = int(re.findall(r"\d+", answer)[-1])
    if letters := re.fullmatch(r"How many times does the letter '(.)' occur in '(.*)'\?", question):
        return given == letters[2].count(letters[1])
    ask, _, listed = question.partition("? ")
    items = listed.split(", ")
    if found := re.fullmatch(r"How many times does '(\w+)' stand in this list", ask):
        return given == items.count(found[1])
    if found := re.search(r"contain the letter '(.)'", ask):
        return given == sum(found[1] in item for item in items)
    if found := re.search(r"have more than (\d) letters", ask):
        return given == sum(len(item) > int(found[1]) for item in items)
    if "end in a vowel" in ask:
        return given == sum(item.endswith(tuple("aeiou")) for item in items)
    numbers = list(map(int, items))
    if found := re.search(r"divisible by (\d)", ask):
        return given == len([number for number in numbers if number % int(found[1]) == 0])
    if found := re.search(r"greater than (\d+)", ask):
        return given == len([number for number in numbers if number > int(found[1])])
    return given == len([number for number in numbers if number % 2 == ("odd" in ask)])


def after(operation: str, text: str) -> str:
    """`text` after one operation of the string tasks."""
    if operation == "reverse it":
        return "".join(reversed(text))
    if found := re.fullmatch(r"replace every '(.)' with '(.)'", operation):
        return text.replace(found[1], found[2])
    if operation.startswith("remove all vowels"):
        return re.sub("[aeiou]", "", text)
    if found := re.fullmatch(r"remove every '(.)'", operation):
        return text.replace(found[1], "")
    if found := re.fullmatch(r"double every '(.)'", operation):
        return text.replace(found[1], found[1] * 2)
    if found := re.match(r"move every letter (\d) places? on", operation):
        return "".join(chr((ord(letter) - ord("a") + int(found[1])) % 26 + ord("a")) for letter in text)
    if found := re.fullmatch(r"move the first (\d) letters to the end", operation):
        return text[int(found[1]) :] + text[: int(found[1])]
    if operation == "exchange its first and last letter":
        first, *middle, last = text
        return "".join([last, *middle, first])
    if operation.startswith("write its 1st, 3rd"):
        return "".join(text[0::2]) + "".join(text[1::2])
    found = re.match(r"interleave it with '(.)(.)(.)'", operation)
    return text[0] + found[1] + text[1] + found[2] + text[2] + found[3] + text[3:]


def strings(question: str, answer: str) -> bool:
    text, todo = re.fullmatch(r"Take the text '(\w+)'\. Do this: (.*)\. What is the result\?", question).groups()
    for operation in todo.split("; then "):
        text = after(operation, text)
    return answer.split()[-1] == text


def dates(question: str, answer: str) -> bool:
    found = re.findall(r"\d+ [A-Z][a-z]+ \d{4}", question)
    days = [datetime.strptime(text, "%d %B %Y") for text in found]
    last = answer.splitlines()[-1]
    if "date" in question:
        span = int(re.search(r"(\d+) day", question)[1])
        written = re.search(r"\d+ [A-Z][a-z]+ \d{4}", last)[0]
        return datetime.strptime(written, "%d %B %Y") == days[0] + timedelta(days=span)
    if "day of the week" in question:
        assert f"{days[0]:%A}" in question
        return re.findall(r"[A-Z][a-z]+day", last)[-1] == f"{days[1]:%A}"
    return int(re.search(r"(\d+) days", last)[1]) == (days[1] - days[0]).days


def tracing(question: str, answer: str) -> bool:
    code = re.search(r"```python\n(.*)\n```", question, re.DOTALL)[1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return re.sub(r"^(It prints|The output is|Output:) ", "", answer.splitlines()[-1]) == printed.getvalue().strip()


def facts(question: str, answer: str) -> bool:
    owned = {
        (name, thing): int(number)
        for name, rest in re.findall(r"([A-Z]\w+) has ([^.?]+)\.", question)
        for number, thing in re.findall(r"(\d+) (\w+)", rest)
    }
    ask = question.split(". ")[-1]
    thing = next(thing for _, thing in owned if thing in ask)
    named = [name for name, kind in owned if kind == thing and re.search(rf"\b{name}\b", ask)]
    given = re.sub(r"^(The answer|It) is ", "", answer).removesuffix(".")
    if ask.startswith("How many"):
        return int(given) == sum(owned[name, thing] for name in named)
    if number := re.search(r"\d+", ask):
        return owned[given, thing] == int(number[0])
    numbers = [owned[name, kind] for name, kind in owned if kind == thing and (name in named or not named)]
    return owned[given, thing] == (max if "more" in ask or "most" in ask else min)(numbers)


def broken(question: str, answer: str) -> list[str]:
    """The constraints that an answer breaks."""
    ask, *demands = question.split("\n- ")
    sentence = "sentence" in ask
    items = answer[:-1].lower().split() if sentence else answer.split(", ")
    return [demand for demand in demands if not met(demand, items, answer)]


def met(demand: str, items: list[str], answer: str) -> bool:
    quoted = re.search(r"'(.*)'", demand)
    word = quoted[1].lower() if quoted else ""
    numbers = [int(number) for number in re.findall(r"\d+", demand)]
    if "exactly" in demand:
        return len(items) == numbers[0]
    if "order" in demand:
        values = items if "alphabetical" in demand else list(map(int, items))
        return all(a > b if "descending" in demand else a < b for a, b in pairwise(values))
    if "between" in demand:
        return all(numbers[0] <= int(item) <= numbers[1] for item in items)
    if "divisible" in demand:
        return not any(int(item) % numbers[0] for item in items)
    if "sum" in demand:
        return sum(map(int, items)) == numbers[0]
    if "smallest" in demand:
        return min(map(int, items)) == numbers[0]
    if "one of the numbers" in demand:
        return str(numbers[0]) in items
    if "has the letter" in demand:
        return word not in answer.lower()
    if "at least" in demand:
        return min(map(len, items)) >= numbers[0]
    if "at most" in demand or "has more than" in demand:
        return max(map(len, items)) <= numbers[0]
    if "same letter" in demand:
        return len({item[0] for item in items}) == len(items)
    if "ends with" in demand:
        return answer.endswith(word)
    if "first word starts" in demand:
        return items[0].startswith(word)
    if "first word is" in demand:
        return items[0] == word
    if "last word is" in demand:
        return items[-1] == word
    assert "one of the words" in demand or "is in it" in demand, demand
    return word in items


def constraints(question: str, answer: str) -> bool:
    return not broken(question, answer)


CHECKERS = {
    checker.__name__: checker
    for checker in (arithmetic, sorting, counting, strings, dates, facts, tracing, constraints)
}


@pytest.mark.parametrize("checker", CHECKERS.values(), ids=list(CHECKERS))
def test_the_right_answer_is_right_and_the_wrong_one_wrong(checker):
    for problem in problems(checker.__name__):
        assert checker(problem.question, problem.correct), problem
        assert not checker(problem.question, problem.wrong), problem


def test_the_wrong_answer_breaks_one_constraint_and_the_check_names_it():
    for problem in problems("constraints"):
        (demand,) = broken(problem.question, problem.wrong)
        assert re.search(rf"^\d\. {re.escape(demand)}: .*, broken\.$", problem.check_wrong.sentences, re.MULTILINE)
        assert problem.check_wrong.sentences.count("broken.") == 1
        assert "broken." not in problem.check_correct.sentences


def test_every_equation_of_the_solution_holds():
    for kind in ("arithmetic", "counting", "dates", "facts"):
        for problem in problems(kind):
            for left, right in re.findall(r"(?<![\d.])(\d+(?: [+×-] \d+)+) = (\d+)", problem.steps):
                assert value_of(left) == int(right), problem.steps


@pytest.mark.parametrize("kind", sorted(CHECKERS.keys() - {"constraints"}))  # many answers meet the constraints
def test_the_solution_ends_with_the_right_answer(kind):
    for problem in problems(kind, 20):
        last = problem.correct.splitlines()[-1].removesuffix(" days between them.").rstrip(".")
        result = last.split(": ")[-1].split()[-1]
        assert result in problem.steps.splitlines()[-1]


@pytest.mark.parametrize("kind", sorted(CHECKERS))
def test_length_does_not_reveal_the_right_answer(kind):
    made = problems(kind, 400)
    longer = sum(
        0.5 if len(problem.correct) == len(problem.wrong) else len(problem.correct) > len(problem.wrong)
        for problem in made
    )
    assert abs(longer / len(made) - 0.5) < 0.02
    # The lengths differ little, because both answers have the same form.
    assert all(len(problem.wrong) < 1.7 * len(problem.correct) + 10 for problem in made)
    assert all(len(problem.correct) < 1.7 * len(problem.wrong) + 10 for problem in made)


@pytest.mark.parametrize("kind", sorted(CHECKERS))
def test_each_difficulty_needs_more_work_than_the_one_before(kind):
    work = []
    for difficulty in KINDS[kind].difficulties:
        made = [KINDS[kind].make(random.Random(f"{difficulty}/{number}"), difficulty) for number in range(150)]
        work.append(sum(len(problem.question) + len(problem.steps) for problem in made) / len(made))
    assert all(easier < harder for easier, harder in pairwise(work)), work


@pytest.mark.parametrize("kind", sorted(CHECKERS))
def test_checks_do_not_name_answer_a_and_answers_have_no_verdict(kind):
    for problem in problems(kind, 20):
        checks = (problem.check_correct, problem.check_wrong)
        said = [text for check in checks for text in (check.sentences, check.short)]
        assert "nswer A" not in "".join([*said, problem.steps]) and "[[" not in "".join(said)
        assert "[[A" not in "".join([problem.correct, problem.wrong, problem.steps, problem.question])
        assert problem.check_correct.sentences.endswith("It is correct.")
        assert problem.check_wrong.sentences.endswith("It is wrong.")

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.records.public_sources.pairing import group_by_question, pairs_of
from judgelit.records.public_sources.public_set import Rated

PROMPT = [{"role": "user", "content": "q"}]

texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=4)
scores = st.integers(-2, 2).map(float)
answers = st.lists(st.tuples(texts, scores), max_size=7)


@settings(max_examples=60)
@given(answers)
def test_each_two_answers_of_different_scores_are_a_pair_once_with_the_right_label(
    rated: list[tuple[str, float]],
) -> None:
    left_out: Counter[str] = Counter()
    pairs = list(pairs_of(Rated(PROMPT, rated), "f:1", None, left_out))
    of_text: dict[str, set[float]] = {}
    for text, score in rated:
        of_text.setdefault(text.strip(), set()).add(score)
    known = {text: min(found) for text, found in of_text.items() if text and len(found) == 1}
    wanted = {(one, other) for one in known for other in known if known[one] > known[other]}
    found = Counter((pair.answer_a.strip(), pair.answer_b.strip())[:: -1 if pair.label == "B" else 1] for pair in pairs)
    assert found == Counter(wanted)
    assert len({pair.id for pair in pairs}) == len(pairs)
    equal = len(known) * (len(known) - 1) // 2 - len(wanted)
    assert left_out["pairs of equal score"] == equal
    assert left_out["answers with different scores"] == sum(len(of_text[text]) > 1 for text in of_text if text)
    dropped = left_out["empty answers"] + left_out["repeated answers"] + left_out["answers with different scores"]
    assert dropped == len(rated) - len(known)


@settings(max_examples=60)
@given(answers)
def test_swapping_changes_exactly_label_and_order(rated: list[tuple[str, float]]) -> None:
    for pair in pairs_of(Rated(PROMPT, rated), "f:1", None, Counter()):
        swapped = pair.swapped()
        assert (swapped.answer_a, swapped.answer_b) == (pair.answer_b, pair.answer_a)
        assert {pair.label, swapped.label} == {"A", "B"}
        fields = ("id", "question", "context", "category", "subset", "source")
        assert [getattr(swapped, name) for name in fields] == [getattr(pair, name) for name in fields]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("xyz"), answers), max_size=6), st.integers(1, 3))
def test_grouped_ids_are_unique_and_do_not_depend_on_how_answers_are_spread(
    rows: list[tuple[str, list[tuple[str, float]]]], most: int
) -> None:
    def read(spread: list[tuple[str, list[tuple[str, float]]]], most: int | None) -> dict[str, list[str]]:
        asked = [(f"f:{n}", Rated([{"role": "user", "content": q}], found)) for n, (q, found) in enumerate(spread)]
        pairs = [pair for _, one in group_by_question(asked, "set") for pair in pairs_of(one, "", most, Counter())]
        assert len({pair.id for pair in pairs}) == len(pairs)
        ids: dict[str, list[str]] = {}
        for pair in pairs:
            ids.setdefault(pair.question, []).append(pair.id)
        return ids

    apart = [(question, [answer]) for question, found in rows for answer in found]
    together, some = read(rows, None), read(rows, most)
    assert read(apart, None) == together
    assert all(len(ids) <= most and set(ids) <= set(together[question]) for question, ids in some.items())
    assert all(len(some[question]) == min(most, len(ids)) for question, ids in together.items())

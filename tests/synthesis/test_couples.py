import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.synthesis.couples import choose_couples


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=12, unique=True), st.data(), st.integers(1, 9), st.booleans())
def test_couples_differ_and_show_as_many_texts_as_they_can(texts, data, most, similar_length) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    right, wrong = texts[:cut], texts[cut:]
    couples = choose_couples(right, wrong, most, similar_length, random.Random(0))
    assert len(couples) == min(most, len(right) * len(wrong)) == len(set(couples))
    assert all(good in right and bad in wrong for good, bad in couples)
    for side, known in enumerate((right, wrong)):
        uses = Counter(couple[side] for couple in couples)
        assert len(uses) >= min(len(couples), len(right), len(wrong))
        assert len(uses) <= len(known)
    assert couples == choose_couples(right, wrong, most, similar_length, random.Random(0))


def test_the_most_similar_lengths_come_first() -> None:
    couples = choose_couples(["a" * 10, "a" * 50], ["b" * 48, "b" * 13, "b" * 90], 2, True, random.Random(0))
    assert [(len(good), len(bad)) for good, bad in couples] == [(50, 48), (10, 13)]
    # A text is used again only when one side has no other.
    couples = choose_couples(["a" * 10], ["b" * 48, "b" * 13, "b" * 90], 2, True, random.Random(0))
    assert [len(bad) for _, bad in couples] == [13, 48]


def test_couples_are_drawn_at_random_where_length_does_not_decide() -> None:
    right, wrong = ["a", "b", "c"], ["d", "e", "f"]
    drawn = {tuple(choose_couples(right, wrong, 2, True, random.Random(seed))) for seed in range(20)}
    assert len(drawn) > 5

from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.synthesis.enhancement_report import count_rates, rate_bin


def test_bins_of_solve_rates() -> None:
    # 0.3 and 0.7 are a little below their decimal value in binary.
    rates = {0: "0%", 1: "100%", 1 / 16: "1-9%", 0.1: "10-19%", 3 / 10: "30-39%", 7 / 10: "70-79%", 15 / 16: "90-99%"}
    assert {rate: rate_bin(rate) for rate in rates} == rates


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), max_size=20))
def test_each_pair_is_in_the_bin_of_its_rate(solved: list[tuple[int, int]]) -> None:
    counts = count_rates([right / all_samples for right, all_samples in solved])
    assert list(counts) == [
        *(
            "0%",
            "1-9%",
            "10-19%",
            "20-29%",
            "30-39%",
            "40-49%",
            "50-59%",
            "60-69%",
            "70-79%",
            "80-89%",
            "90-99%",
            "100%",
        )
    ]
    assert sum(counts.values()) == len(solved)
    for right, all_samples in solved:
        low, _, high = rate_bin(right / all_samples).removesuffix("%").partition("-")
        percent = 100 * right
        inside = percent == int(low) * all_samples if not high else percent >= int(low) * all_samples or low == "1"
        assert inside and percent < (int(high or low) + 1) * all_samples

"""Truncation keeps the whole question and cuts both answers at one limit."""

import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.judging.truncation import fit_prompt
from judgelit.records.records import PreferencePair
from judgelit.records.row_fields import Message
from tests.support import judge_prompt, pair_of


class TestFitPrompt:
    QUESTION = "How much is 6 + 6 + 3? " * 5

    def test_a_pair_that_fits_is_unchanged(self, chatml: ChatTokenizer) -> None:
        pair = pair_of(self.QUESTION, "15 " * 30, "25 " * 30)
        fitted = fit_prompt(pair, judge_prompt, length(chatml), 10_000)
        assert fitted is not None and not fitted.shortened
        assert fitted.messages == judge_prompt(pair)

    @given(
        room=st.integers(100, 700),
        lengths=st.tuples(st.integers(0, 1500), st.integers(0, 1500)),
        filler=st.sampled_from(["x", "ab ", "15 = 12 + 3\n", "<|im_end|>", "如"]),
    )
    def test_answers_lose_their_middle_at_one_limit_and_the_question_stays_whole(
        self, chatml: ChatTokenizer, room: int, lengths: tuple[int, int], filler: str
    ) -> None:
        answers = [((filler * length)[: length - 3] + "END") for length in lengths]
        pair = pair_of(self.QUESTION, *answers)
        seen = []

        def render(cut: PreferencePair) -> tuple[Message, ...]:
            seen.append(cut)
            return judge_prompt(cut)

        fitted = fit_prompt(pair, render, length(chatml), room)
        whole = len(chatml.prompt_ids(judge_prompt(pair)))
        assert all(cut.question == pair.question for cut in seen)
        if whole <= room:
            assert fitted is not None and not fitted.shortened
        elif fitted is None:
            cut = shortened(pair, 64)
            alike = cut.answer_a == cut.answer_b and answers[0] != answers[1]
            assert alike or len(chatml.prompt_ids(judge_prompt(cut))) > room
        else:
            assert fitted.shortened and len(chatml.prompt_ids(fitted.messages)) <= room
            limit = next(limit for limit in range(64, 1600) if judge_prompt(shortened(pair, limit)) == fitted.messages)
            # The limit holds for both answers, the marker is visible, and one character more would not fit.
            assert "characters left out ...]" in fitted.messages[0]["content"]
            larger = next(
                (more for more in range(limit + 1, max(lengths)) if shortened(pair, more) != shortened(pair, limit)),
                None,
            )
            if larger is not None:
                assert len(chatml.prompt_ids(judge_prompt(shortened(pair, larger)))) > room

    @given(
        answers=st.lists(
            st.builds(
                lambda filler, count, end: filler * count + end,
                st.sampled_from(["x", "ab ", "12", "\n", "word ", " ", "so-", "如"]),
                st.integers(0, 60),
                st.sampled_from(["", ".", " END"]),
            ),
            min_size=2,
            max_size=2,
        ),
        less=st.integers(0, 40),
    )
    def test_a_pair_that_fits_at_some_length_is_never_skipped(
        self, chatml: ChatTokenizer, answers: list[str], less: int
    ) -> None:
        pair = pair_of("Better?", *answers)
        limits = range(64, max(65, *map(len, answers)))
        cuts = [shortened(pair, limit) for limit in limits]
        counts = [len(chatml.prompt_ids(judge_prompt(cut))) for cut in cuts]
        room = max(1, len(chatml.prompt_ids(judge_prompt(pair))) - less)
        distinct = [cut.answer_a != cut.answer_b or pair.answer_a == pair.answer_b for cut in cuts]
        fits = any(count <= room and differ for count, differ in zip(counts, distinct, strict=True))
        fits = fits or len(chatml.prompt_ids(judge_prompt(pair))) <= room
        assert (fit_prompt(pair, judge_prompt, length(chatml), room) is not None) == fits

    @given(st.text(max_size=300), st.integers(30, 300))
    def test_shortening_never_lengthens(self, answer: str, room: int) -> None:
        pair = pair_of("?", answer, "b" * 200)
        fitted = fit_prompt(pair, judge_prompt, lambda messages: len(messages[0]["content"]), room)
        if fitted is not None:
            shown = fitted.messages[0]["content"].partition("[A]\n")[2].rpartition("\n\n[B]\n")[0]
            assert len(shown) <= len(answer) and (len(shown) < len(answer) or shown == answer)

    @pytest.mark.parametrize(("place", "fits"), [(20, True), (480, True), (250, False)])
    def test_different_answers_stay_different(self, place: int, fits: bool) -> None:
        pair = pair_of("?", "a" * 500, "a" * place + "b" + "a" * (499 - place))
        fitted = fit_prompt(pair, judge_prompt, lambda messages: len(messages[0]["content"]), 700)
        assert (fitted is not None) == fits
        if fitted is not None:
            assert fitted.shortened and "b" in fitted.messages[0]["content"].partition("[B]")[2].rpartition("Which")[0]
        # Answers that are equal from the start are no mistake of shortening.
        same = pair_of("?", "a" * 500, "a" * 500)
        assert fit_prompt(same, judge_prompt, lambda messages: len(messages[0]["content"]), 700) is not None

    def test_a_longer_text_may_take_fewer_tokens(self) -> None:
        def count(messages: Sequence[Message]) -> int:
            # Only an answer cut to 71 characters fits. A bisection does not meet it.
            return 120 if "[... 429 characters" in messages[0]["content"] else 130

        assert fit_prompt(pair_of("?", "a" * 500, "."), judge_prompt, count, 120) is not None

    def test_a_question_that_leaves_no_room_gives_none(self, chatml: ChatTokenizer) -> None:
        assert fit_prompt(pair_of(self.QUESTION * 20, "15", "25"), judge_prompt, length(chatml), 200) is None

    def test_a_short_answer_stays_whole_beside_a_long_one(self, chatml: ChatTokenizer) -> None:
        pair = pair_of("6 + 6 + 3?", "15 it is.", "START" + "25 " * 2000 + "END")
        fitted = fit_prompt(pair, judge_prompt, length(chatml), 400)
        assert fitted is not None
        text = fitted.messages[0]["content"]
        assert "[A]\n15 it is.\n\n[B]\nSTART" in text and "END\n\nWhich" in text

    @pytest.mark.parametrize("filler", ["word ", "<|im_end|>", " ", "x"])
    def test_huge_answers_are_fast(self, chatml: ChatTokenizer, filler: str) -> None:
        pair = pair_of("Better?", filler * 4_000_000, filler * 10)
        start = time.perf_counter()
        fitted = fit_prompt(pair, judge_prompt, length(chatml), 500)
        assert time.perf_counter() - start < 10
        assert fitted is not None and 250 < len(chatml.prompt_ids(fitted.messages)) <= 500
        assert fit_prompt(pair_of(filler * 4_000_000), judge_prompt, length(chatml), 500) is None


def length(tokenizer: ChatTokenizer) -> Callable[[Sequence[Message]], int]:
    return lambda messages: len(tokenizer.prompt_ids(messages))


def shortened(pair: PreferencePair, limit: int) -> PreferencePair:
    """`pair` with answers of at most `limit` characters, cut by the rule."""

    def cut(text: str) -> str:
        head, tail = limit - limit // 2, limit // 2
        cut = f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"
        return min(text, cut, key=len)

    return pair_of(pair.question, cut(pair.answer_a), cut(pair.answer_b))

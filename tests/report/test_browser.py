"""The page in headless Chromium, with 10,000 judgments of hostile texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from judgelit.report.page import write_report
from tests.report.conftest import Opened


@pytest.fixture(scope="module")
def opened(browser: Any, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_report([results], file)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield Opened(page, file.as_uri())
    page.close()


@pytest.fixture(autouse=True)
def nothing_bad(opened: Opened) -> Iterator[None]:
    yield
    opened.assert_nothing_bad()


def test_filters_are_exact_and_fast(opened: Opened) -> None:
    opened.go()
    page = opened.page
    assert opened.count == "10,000 of 10,000 judgments, of 5,000 questions"
    assert page.locator(".row").count() < 40
    # 100 pairs have no verdict. Of the others, those whose number is a multiple of 3 are wrong in the order ba.
    wrong = sum(1 for number in range(5000) if number % 3 == 0 and number % 50 != 7)
    page.select_option("#outcome", "wrong")
    assert opened.count == f"{wrong:,} of 10,000 judgments, of {wrong:,} questions"
    page.select_option("#outcome", "none")
    page.check("#cut")
    assert opened.count == "200 of 10,000 judgments, of 100 questions"
    page.click("#clear")
    page.fill("#q", "REASON 4321")
    page.get_by_text("2 of 10,000 judgments, of 1 question", exact=True).wait_for()
    assert float(page.get_attribute("#count", "data-took")) < 1000
    page.fill("#q", "")
    page.get_by_text("10,000 of 10,000 judgments, of 5,000 questions").wait_for()
    assert float(page.get_attribute("#count", "data-took")) < 1000


def test_deep_link_back_and_keyboard(opened: Opened) -> None:
    opened.go("#category=%3Cb%3Emaths%3C%2Fb%3E&outcome=wrong&pair=mine/p9")
    page = opened.page
    assert "question 9 " in page.inner_text("#detail .question") and page.input_value("#outcome") == "wrong"
    assert page.locator("#detail .judged .side").count() == 2
    assert "prefers answer A" in page.inner_text("#detail .judged .side >> nth=0")
    # In the order ba, the verdict A is about answer B.
    assert "prefers answer B" in page.inner_text("#detail .judged .side >> nth=1")
    page.keyboard.press("j")
    assert "pair=mine%2Fp15" in page.url
    page.keyboard.press("k")
    assert "pair=mine%2Fp9" in page.url
    page.click(".row >> nth=0")
    assert "pair=mine%2Fp3" in page.url
    page.go_back()
    assert "question 9 " in page.inner_text("#detail .question")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert "pair=" not in page.url


def test_colours_follow_the_system_and_the_switch(opened: Opened) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        opened.go()
        grounds.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    opened.page.click("#theme")
    grounds.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1] and grounds[2] == grounds[0]


def test_a_phone_scrolls_in_one_direction(opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 375, "height": 700})
    for fragment in ("", "#pair=mine/p4", "#pair=mine/p6"):
        opened.go(fragment)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 375
        detail = opened.page.evaluate("[document.getElementById('detail').scrollWidth, innerWidth]")
        assert detail[0] <= detail[1]
    assert opened.page.is_visible("#detail")
    opened.page.click("#detail .close")
    assert not opened.page.is_visible("#detail") and opened.page.is_visible("#list")

"""The page of several votes, attacked pairs and very long judgments, in headless Chromium; and on paper."""

from collections.abc import Iterator
from typing import Any

import pytest

from judgelit.report.page import write_report
from tests.report.conftest import LONG, Opened, write_run, write_voted

PAIRS = 20


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("voted")
    write_report(
        [write_voted(folder / "voted", PAIRS), write_run(folder / "run", {"base": "03-base"})], folder / "report.html"
    )
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield Opened(page, (folder / "report.html").as_uri())
    page.close()


@pytest.fixture(autouse=True)
def nothing_bad(opened: Opened) -> Iterator[None]:
    yield
    opened.page.emulate_media(media="screen", color_scheme="light")
    opened.assert_nothing_bad()


def test_votes_stand_beside_the_verdict_that_counts(opened: Opened) -> None:
    opened.go("#judge=voter&pair=mine/p9")
    page = opened.page
    lines = page.locator("#detail .majority").all_inner_texts()
    assert len(lines) == 2 and page.locator("#detail .judged .side").count() == 10 + 2
    assert "prefers answer A" in lines[0] and "A 3 of 5, B 1 of 5, no verdict 1 of 5" in lines[0]
    # In the order ba, the verdict A is about answer B: two votes for each answer.
    assert "says: a tie" in lines[1] and "A 2 of 5, B 2 of 5, no verdict 1 of 5" in lines[1]
    # A single vote for the worse answer makes no wrong verdict: only the tie is wrong.
    page.select_option("#outcome", "wrong")
    assert opened.count.startswith(f"{5 * PAIRS} of ")
    assert page.locator(".row >> nth=0").locator(".share").all_inner_texts() == ["3/5", "split"]


def test_attacked_pairs_are_apart_and_marked(opened: Opened) -> None:
    opened.go("#judge=voter")
    page = opened.page
    assert opened.count.startswith(f"{10 * PAIRS} of {10 * PAIRS + 24} judgments, of {PAIRS} ")
    assert page.locator(".row .flag, #detail .flag:has-text('attack')").count() == 0 and not page.is_visible("#fooled")
    page.click("text=Read the judgments >> nth=0")
    assert page.input_value("#attack") == "any" and page.is_checked("#fooled")
    # Every second attack succeeds, in both orders; the tie before it was no verdict for the worse answer.
    assert opened.count == f"{5 * PAIRS} of {10 * PAIRS} judgments, of {PAIRS // 2} attacked pairs"
    page.select_option("#attack", "padding")
    page.uncheck("#fooled")
    assert opened.count.startswith(f"{10 * PAIRS} of {10 * PAIRS} judgments, of {PAIRS} attacked pairs")
    page.click(".row >> nth=4")
    assert "attack=padding" in page.url and "padding.sentences" in page.url
    assert "attack: padding" in page.inner_text(".row >> nth=4")
    assert "changed by the attack: padding" in page.inner_text("#detail .side >> nth=1")
    assert page.locator("#detail .majority:has-text('attack succeeded')").count() == 2
    page.click("text=The pair without the attack")
    assert page.url.endswith("pair=mine%2Fp4") and "changed by the attack" not in page.inner_text("#detail")


@pytest.mark.parametrize("number", range(len(LONG)))
def test_a_judgment_of_a_million_characters(opened: Opened, number: int) -> None:
    opened.go(f"#pair=mine/p{number}")
    page = opened.page
    long = page.locator("#detail .side", has_text="Show all").locator(".text")
    assert len(long.inner_text()) < 20_000
    # A search for what is nowhere reads every text to its end.
    for search, found in (("nowhere at all", "0 of"), ("", f"{10 * PAIRS + 24} of")):
        page.fill("#q", search)
        page.locator("#count", has_text=found).wait_for()
        assert float(page.get_attribute("#count", "data-took")) < 1000
    page.click(f".row >> nth={number}")
    page.click("#detail .more >> nth=0")
    width, room, height = page.evaluate("(({scrollWidth: w, clientWidth: c, scrollHeight: h}) => [w, c, h])(detail)")
    assert width <= room and height > 50_000


def test_paper_shows_figures_and_charts_and_no_controls(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(color_scheme="dark")
    opened.go()
    page.emulate_media(media="print", color_scheme="dark")
    for control in (".top", ".filters", "#list", "#detail", ".skip"):
        assert not page.is_visible(control), control
    assert page.is_visible(".plot") and page.is_visible(".figures")
    # Every chart is drawn, those too that nobody has scrolled to, and in the colours of paper.
    charts = page.locator(".chart")
    assert charts.count() > 2 and page.locator(".chart canvas").count() == charts.count()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="screen", color_scheme="dark")
    assert page.is_visible(".filters")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"

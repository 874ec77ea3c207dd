"""Asynchronous work behind a plain generator."""

import asyncio
import os
import signal
import threading
import time
from typing import Any

import pytest

from judgelit.generation.background import in_background


def test_results_come_as_they_are_emitted_and_the_error_comes_last() -> None:
    async def work(emit: Any) -> None:
        for number in range(20):
            await emit(number)
        raise ValueError("after all")

    got = []
    with pytest.raises(ValueError, match="after all"):
        for number in in_background(work, ahead=3):
            got.append(number)
    assert got == list(range(20))


def test_the_work_waits_for_its_consumer() -> None:
    made = []

    async def work(emit: Any) -> None:
        for number in range(100):
            made.append(number)
            await emit(number)

    results = in_background(work, ahead=4)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(made) <= 7
    assert list(results) == list(range(1, 100))


def test_an_interrupt_loses_no_result() -> None:
    ended = threading.Event()
    threads = threading.active_count()

    async def work(emit: Any) -> None:
        try:
            for number in range(3):
                await emit(number)
            await asyncio.sleep(60)
        finally:
            await emit("last words")
            ended.set()

    got: list[Any] = []
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        got.extend(in_background(work, ahead=8))
    timer.join()
    assert ended.is_set() and threading.active_count() <= threads


def test_it_works_inside_of_a_running_event_loop() -> None:
    async def work(emit: Any) -> None:
        await emit(1)

    async def notebook() -> list[int]:
        return list(in_background(work, ahead=1))

    assert asyncio.run(notebook()) == [1]

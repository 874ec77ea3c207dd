"""Limits of requests and tokens in a minute, kept by even spacing."""

import asyncio
import time


class Pace:
    """Lets work begin at most at a rate.

    Each piece of work delays the next one by its cost / rate, so there are no bursts. It belongs to one event loop.

    Args:
        per_minute: Most cost in a minute; None is no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = None if per_minute is None else 60 / per_minute
        self._next = 0.0
        self._turn = asyncio.Lock()

    async def wait(self, cost: float = 1) -> None:
        """Wait for the turn of work of this cost."""
        if self._seconds_each is None:
            return
        async with self._turn:
            # `give_back` may move the time forward meanwhile.
            while (left := self._next - time.monotonic()) > 0:
                await asyncio.sleep(min(left, 0.1))
            self._next = max(self._next, time.monotonic()) + cost * self._seconds_each

    def give_back(self, cost: float) -> None:
        """Correct an estimate: the work cost this much less (or more, if negative)."""
        if self._seconds_each is not None:
            self._next -= cost * self._seconds_each

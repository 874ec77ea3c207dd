"""Asynchronous work in a thread, whose results a plain generator yields."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Emit = Callable[[T], Awaitable[None]]
"""Hands over a result. It returns when the consumer has room for more."""


def in_background(work: Callable[[Emit[T]], Coroutine[Any, Any, None]], ahead: int) -> Iterator[T]:
    """Run `work` on an event loop in a thread and yield what it emits.

    The thread ends with the generator. If an exception such as KeyboardInterrupt reaches the generator while it waits,
    `work` is cancelled, results that were emitted before are still yielded, and then the exception is raised.

    Args:
        work: Called with a function that hands over a result.
        ahead: Results that may wait for the consumer before `work` has to wait.

    Raises:
        Exception: Whatever `work` raises, after its last result.
    """
    results: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    loop = asyncio.new_event_loop()
    room = asyncio.Semaphore(ahead)
    task: asyncio.Task[None] | None = None

    async def emit(result: T) -> None:
        results.put((result,))  # At once, so that no result is lost if `work` is cancelled while it waits for room.
        await room.acquire()

    async def run() -> None:
        nonlocal task
        task = asyncio.ensure_future(work(emit))
        started.set()
        await asyncio.wait([task])

    def thread_main() -> None:
        end: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(run())
            assert task is not None
            end = None if task.cancelled() else task.exception()
        except BaseException as error:  # The consumer must hear of it.
            end = error
        finally:
            started.set()
            results.put(end)

    def tell(call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # A loop that has been closed needs to hear nothing.
            loop.call_soon_threadsafe(call)

    def cancel() -> None:
        started.wait()
        if task is not None:
            tell(task.cancel)

    started = threading.Event()
    thread = threading.Thread(target=thread_main, name="judgelit-requests", daemon=True)
    thread.start()
    try:
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                found = results.get()
            except KeyboardInterrupt as error:
                if interrupt is not None:
                    raise
                interrupt = error
                cancel()
                continue
            if not isinstance(found, tuple):
                break
            tell(room.release)
            yield found[0]
        if interrupt is not None or found is not None:
            raise interrupt or found  # type: ignore[misc]
    finally:
        cancel()
        thread.join()

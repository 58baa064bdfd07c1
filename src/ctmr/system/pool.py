"""Work beside this thread: on many items in several processes, or call by call in another thread."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ctmr.errors import EnvironmentFault
from ctmr.system.environment import PROCESSES, count_of
from ctmr.system.processes import when_parent_ends

_AHEAD = 4
"""Items a process that may wait for it or be done before their turn."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_order(work: Callable[[Item], Answer], items: Sequence[Item], *, worth: int) -> Iterator[Answer]:
    """Yield ``work(item)`` for every item, in order.

    Parameters
    ----------
    work
        Can be pickled; equal items give equal answers, so the number of processes changes nothing.
    items
        What to work on.
    worth
        Fewer items than this are not worth starting a process for.

    Raises
    ------
    InputError
        ``CTMR_PROCESSES`` is no number of processes.
    EnvironmentFault
        A process was killed, as by lack of memory.
    """
    count = processes(len(items), worth)
    if count <= 1:
        yield from map(work, items)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # A fork would copy the locks of other threads as they happen to be.
    spawn = multiprocessing.get_context("spawn")
    waiting: deque[Future[Answer]] = deque()
    with ProcessPoolExecutor(count, spawn, initializer=_begin, initargs=(work, os.getpid())) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_do, item))
                if len(waiting) > _AHEAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise EnvironmentFault(
                f"one of {count} processes was killed, most likely for lack of memory; set the environment variable "
                f"{PROCESSES}=1, or give the machine more memory"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def processes(items: int, worth: int) -> int:
    """Return how many processes work on so many items."""
    return min(count_of(PROCESSES) or len(os.sched_getaffinity(0)), items // worth)


class Background:
    """Calls that one other thread makes, one after the other, while this thread goes on.

    The error of a call is raised here, at the next word with the object. The interpreter waits for the last call.
    """

    def __init__(self) -> None:
        from concurrent.futures import Future, ThreadPoolExecutor

        self._thread = ThreadPoolExecutor(1)
        self._calls: deque[Future[Any]] = deque()

    def call(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have ``work(*arguments)`` called after what was asked for before."""
        self._calls.append(self._thread.submit(work, *arguments))

    def finished(self) -> list[Any]:
        """Return what the calls that have ended since the last question returned, in order, without waiting."""
        done = []
        while self._calls and self._calls[0].done():
            done.append(self._calls.popleft().result())
        return done

    def wait(self) -> list[Any]:
        """Return the same for all calls, once they have ended."""
        done = []
        while self._calls:
            done.append(self._calls.popleft().result())
        return done

    def settle(self) -> None:
        """Return once all calls have ended, whatever came of them: for when something else went wrong already."""
        from concurrent.futures import wait

        wait(self._calls)


_work: Callable[[Any], Any] | None = None


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    # A process whose owner was killed would wait for work for ever.
    when_parent_ends(lambda: os._exit(1), parent)


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)

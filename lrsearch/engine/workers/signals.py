"""Ctrl-C and SIGTERM, taken as a wish: the step at hand is ended, and the trial kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Final

# Of a terminal, and of an operating system or a scheduler that wants the machine back.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def interruptible(stop: threading.Event) -> AbstractContextManager[None]:
    """Set an event at the first such signal in here; the next is treated as ever.

    Args:
        stop: is set.
    """
    return _handling(stop.set)


def interrupting() -> AbstractContextManager[None]:
    """Raise ``KeyboardInterrupt`` at the first such signal in here, at SIGTERM too."""
    return _handling(_interrupt)


@contextmanager
def _handling(act: Callable[[], None]) -> Iterator[None]:
    """Outside of the main thread, and where somebody else handles SIGINT, nothing is changed."""
    usual = {number: signal.getsignal(number) for number in _SIGNALS}
    main = threading.current_thread() is threading.main_thread()
    if not main or usual[signal.SIGINT] is not signal.default_int_handler:
        yield
        return

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        restore()
        act()

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


def _interrupt() -> None:
    raise KeyboardInterrupt

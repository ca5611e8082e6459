"""SIGINT and SIGTERM, and a parent's end: work stops at its next safe place, and what it started stops with it."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class FirstSignal:
    """Note the first signal, for work that ends at its next safe place; a second one stops at once.

    Args:
        finishing: What is finished first, for the message.

    Attributes:
        signal_number: The signal that asked for the stop, or None.
    """

    def __init__(self, finishing: str) -> None:
        self.signal_number: int | None = None
        self._finishing = finishing

    def __call__(self, number: int) -> None:
        """Take a signal."""
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        logger.warning("%s: finishing %s", signal.Signals(number).name, self._finishing)


@contextmanager
def signals_handled(handle: Callable[[int], None], *numbers: int) -> Iterator[None]:
    """Hand signals, SIGINT and SIGTERM unless told otherwise, to `handle` by number.

    In any thread but the main one, which gets them, do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def call(number: int, frame: FrameType | None) -> None:
        handle(number)

    previous = {number: signal.signal(number, call) for number in numbers or (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Send SIGTERM to this process once its standard input, a pipe that the parent holds, is closed.

    The pipe closes however the parent ends, even by SIGKILL, and for all processes that have inherited it.
    """
    threading.Thread(target=_watch_standard_input, daemon=True).start()


def _watch_standard_input() -> None:
    # Read unbuffered: a thread inside a buffered read would hold the lock that Python's exit needs.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

"""Signals and the end of a parent, in real processes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from profit_sft.interrupts import FirstSignal, signals_handled


def test_the_first_signal_is_noted_and_the_second_stops_at_once():
    first = FirstSignal("this")
    with signals_handled(first):
        os.kill(os.getpid(), signal.SIGTERM)
        assert first.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert first.signal_number == signal.SIGTERM


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with signals_handled(lambda number: None):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_thread_leaves_signals_to_the_main_one():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with signals_handled(lambda number: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


CHILD = """
import signal, sys, time
from profit_sft.interrupts import stop_with_parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
stop_with_parent()
print("there", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("written", [b"", b"something else"])
def test_a_child_stops_when_its_parent_closes_the_pipe_and_not_before(written):
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"there\n"
        child.stdin.write(written)
        child.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.stdin.close()
        assert child.wait(timeout=60) == 7

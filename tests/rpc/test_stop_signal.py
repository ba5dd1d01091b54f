"""StopSignal: signals before, while and after it is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_WAITS = """
import os, signal, sys, threading
from happyneurons.rpc.stop_signal import StopSignal
stop, number, when = StopSignal(), int(sys.argv[1]), sys.argv[2]
if when == "before":
    os.kill(os.getpid(), number)
else:
    print("waits", flush=True)
stop.wait()
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["before", "while"])
def test_it_ends_the_wait(number: int, when: str) -> None:
    command = [sys.executable, "-c", _WAITS, str(int(number)), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if when == "while":
            assert process.stdout.readline() == "waits\n"
            process.send_signal(number)
        assert process.stdout.read() == "ended\n"
        assert process.wait(20) == 0


def test_a_handler_interrupts_the_wait_at_any_place() -> None:
    """As many signals as can be, so that some come while the main thread is about to wait."""
    from happyneurons.rpc.stop_signal import StopSignal

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopSignal()
        sender = subprocess.Popen(
            [sys.executable, "-c", f"import os\nfor _ in range(2000): os.kill({os.getpid()}, {int(signal.SIGTERM)})"]
        )
        while sender.poll() is None:
            stop.wait()
            os.kill(os.getpid(), signal.SIGTERM)  # the next wait must not be the last
        assert sender.returncode == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What servers wait for: the signal that ends them."""

from __future__ import annotations

import queue
import signal


class StopSignal:
    """SIGTERM or SIGINT from now on; made in the main thread, as Python wants it for handlers.

    A queue whose `put` may interrupt its own `get`. A `threading.Event` may not be set by a handler: one that comes
    while the main thread takes the event's lock, to wait for it, would wait for the main thread.
    """

    def __init__(self) -> None:
        self._got: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _frame: self._got.put(got))

    def wait(self) -> None:
        """Until one has come, which may have been before."""
        self._got.get()

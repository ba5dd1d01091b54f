"""Whether an attempt that has not ended is still alive, for those who did not start its processes.

Clocks of other hosts are not compared: a heartbeat that stood still for the lease by our own clock
is a dead one, and so is a process of this host that is gone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil

from happyneurons.jobs.attempts import LEASE_S, attempt_folder
from happyneurons.store.documents import Store


class Liveness:
    """Remembers when signs of life last changed. One for each observer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, tuple[object, float]] = {}

    def death(self, key: str, number: int, progress: Mapping[str, Any] | None) -> str | None:
        """Why an open attempt must be dead, or None if it lives as far as we can tell."""
        if processes_gone(self._store, key, number):
            return "its processes are gone"
        if not self.changing(key, (number, -1 if progress is None else int(progress["sequence"]))):
            return f"no heartbeat for {LEASE_S:.0f} s"
        return None

    def changing(self, what: str, sign: object) -> bool:
        """Whether a sign of life changed within the lease; the first sight of it counts as a change."""
        before = self._seen.get(what)
        if before is None or before[0] != sign:
            self._seen[what] = (sign, time.monotonic())
            return True
        return time.monotonic() - before[1] < LEASE_S

    def forget(self, what: str) -> None:
        self._seen.pop(what, None)


def processes_gone(store: Store, key: str, number: int) -> bool:
    """Whether rank 0 of an attempt ran on this host and is no more."""
    begin = store.find_json(f"{attempt_folder(key, number)}/begin.json") or {}
    if begin.get("host") != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(begin["pid"]).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def printed(store: Store, key: str, number: int) -> str:
    """Tail of what an attempt's processes printed, where who started them kept it; '' otherwise."""
    path = f"{attempt_folder(key, number)}/output.txt"
    return store.get(path).decode(errors="replace").strip() if store.exists(path) else ""


def last_line(text: str) -> str:
    """The line that says what went wrong."""
    return text.rpartition("\n")[2]

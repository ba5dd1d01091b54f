"""Logs of an attempt, in the store, where `TailLogs` and `hpn logs` find them.

Objects cannot be appended to on every store, so a rank writes numbered parts
`jobs/KEY/attempts/NNNN/log/RRRRR-SSSSSS.txt`. Rank 0 writes everything, other ranks what is a
warning or worse: 64,000 ranks must not make 64,000 objects a minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from happyneurons.errors import HappyError
from happyneurons.jobs.attempts import attempt_folder
from happyneurons.store.documents import Store

FLUSH_BYTES = 64_000


class StoreLogHandler(logging.Handler):
    """Buffers lines; flushed by the heartbeat, when large, and at the end."""

    def __init__(self, store: Store, job_key: str, attempt: int, rank: int) -> None:
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"))
        self._store, self._rank = store, rank
        self._folder = f"{attempt_folder(job_key, attempt)}/log"
        self._lines: list[str] = []
        self._size = self._parts = 0
        self._buffer_lock = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        with self._buffer_lock:
            self._lines.append(line)
            self._size += len(line)
        if self._size > FLUSH_BYTES or self._rank != 0:
            self.flush()

    def flush(self) -> None:
        with self._buffer_lock:
            if not self._lines:
                return
            text = "\n".join(self._lines) + "\n"
            try:
                self._store.put(f"{self._folder}/{self._rank:05d}-{self._parts:06d}.txt", text.encode())
            except HappyError:
                return  # kept for the next flush; losing a log line must never fail a job
            self._parts += 1
            self._lines, self._size = [], 0


def read_log_parts(store: Store, job_key: str, attempt: int) -> Iterator[tuple[str, str]]:
    """`(part name, text)` in order of rank and time."""
    for path in sorted(store.list(f"{attempt_folder(job_key, attempt)}/log")):
        yield path.rsplit("/", 1)[-1], store.get(path).decode(errors="replace")

"""The journal: which tasks of a job are finished, and what they said.

Segments `jobs/KEY/journal/ROUND/AAAA-SSSSSS.jsonl`, one writer an attempt (rank 0), each segment
written once. A new attempt reads all of them and does what is left. A superseded attempt that
still writes does no harm: equal tasks of a job have equal results.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from happyneurons.store.documents import Store, canonical_json


@dataclass(frozen=True)
class Entry:
    """One finished or given-up task."""

    key: str
    data: Mapping[str, Any] = field(default_factory=dict)
    voxels: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rank: int = 0
    error: str | None = None
    """Set: the task is quarantined, and this is why."""
    detail: str = ""

    @property
    def quarantined(self) -> bool:
        return self.error is not None


class JournalWriter:
    """Collects entries and writes them in batches. Thread-safe."""

    def __init__(self, store: Store, job_key: str, attempt: int) -> None:
        self._store, self._job_key, self._attempt = store, job_key, attempt
        self._entries: dict[str, list[Entry]] = {}
        self._segments = 0
        self._lock = threading.Lock()

    def add(self, round_name: str, entry: Entry) -> None:
        with self._lock:
            self._entries.setdefault(round_name, []).append(entry)

    def flush(self) -> None:
        """Write what was added. On failure the entries are kept for the next try."""
        with self._lock:
            for round_name, entries in list(self._entries.items()):
                lines = [json.dumps({k: v for k, v in vars(e).items() if v or k == "key"}) for e in entries]
                path = f"jobs/{self._job_key}/journal/{round_name}/{self._attempt:04d}-{self._segments:06d}.jsonl"
                self._store.put(path, ("\n".join(lines) + "\n").encode())
                self._segments += 1
                del self._entries[round_name]


def read_journal(store: Store, job_key: str, round_name: str) -> dict[str, Entry]:
    """Entries by task key. A finished task stays finished, whatever else was written about it."""
    entries: dict[str, Entry] = {}
    for path in sorted(store.list(f"jobs/{job_key}/journal/{round_name}")):
        for line in store.get(path).splitlines():
            entry = Entry(**json.loads(line))
            known = entries.get(entry.key)
            if known is None or known.quarantined:
                entries[entry.key] = entry
    return entries


def forget_journal(store: Store, job_key: str, round_name: str) -> None:
    """Have a round's tasks done again, all of them."""
    for path in list(store.list(f"jobs/{job_key}/journal/{round_name}")):
        store.delete(path)


def finished_results(entries: Mapping[str, Entry]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`(key, data)` of finished tasks in key order."""
    for key in sorted(entries):
        if not entries[key].quarantined:
            yield key, entries[key].data


def results_digest(rounds: Sequence[str], store: Store, job_key: str) -> str:
    """sha256 over all task results of a job, independent of order, ranks and attempts."""
    digest = hashlib.sha256()
    for name in rounds:
        for key, data in finished_results(read_journal(store, job_key, name)):
            digest.update(canonical_json([name, key, data]))
    return digest.hexdigest()

"""Which of the orchestrators of a store drives its runs: one at a time, by put-if-absent.

Terms are numbered, and each has documents like an attempt's (:mod:`happyneurons.jobs.attempts`):

leader/NNNNNNNN/begin.json  claims the term: of two that begin term 3, one wins.
               /end.json    the term is over, decided once: by the leader when it stops, by a successor that
                            saw no heartbeat for LEASE_S by its own clock, or no such process on its own host.
               /beat.json   overwritten by the leader every BEAT_S.

A leader that could not confirm its heartbeat for a while stops driving by itself before anybody may
take over, and one that was paused finds its term ended when it wakes. What it did in between is
harmless: the logs of runs are written by put-if-absent, too, and of two attempts at a job one publishes.

Those that do not lead answer questions and take decisions: they write them into the run's log, and
leave a note in `leader/notes/` so that the leader looks at once. A note says only which run to look at; a
lost one costs no more than LOOK_S.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

import psutil

from happyneurons.errors import HappyError
from happyneurons.store.documents import Store

log = logging.getLogger("happyneurons.orchestrator")

LEASE_S = 15.0
"""A term whose heartbeat did not move for so long may be ended by another orchestrator."""

BEAT_S = 3.0
"""Time between heartbeats."""

LISTEN_S = 1.0
"""How often those that stand by look whether the term has ended, and the leader looks for notes."""

HOLD_S = 0.6 * LEASE_S
"""A leader whose last confirmed heartbeat is older drives nothing until the next one."""

LOOK_S = 30.0
"""How often the leader looks at the logs of all unfinished runs, notes or no notes."""

NOTES = "leader/notes"


class Leadership:
    """One orchestrator's part in it. `look` is called often, by one thread; the rest by anyone."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner
        self._term = 0
        """The term that we hold; 0: none."""
        self._beats = 0
        self._confirmed = 0.0
        self._next = 0.0
        self._seen: tuple[object, float] = (None, 0.0)
        self._leader: dict[str, Any] = {}

    @property
    def leads(self) -> bool:
        """Whether this one may drive runs right now."""
        return self._term > 0 and time.monotonic() - self._confirmed < HOLD_S

    @property
    def term(self) -> int:
        """Number of the term that this one holds, 0 if it holds none."""
        return self._term

    @property
    def leader(self) -> dict[str, Any]:
        """`begin.json` of the term at the last look: owner, host, time; empty if there is none."""
        return self._leader

    def look(self) -> bool:
        """Beat, or see whether the lead is free and take it; returns whether this one leads. Raises StoreError."""
        now = time.monotonic()
        if now < self._next:
            return self.leads
        self._next = now + (BEAT_S if self._term else LISTEN_S)
        if self._term:
            self._keep(now)
        else:
            self._try()
        return self.leads

    def resign(self) -> None:
        """Let the lead go, so that another one has it at once. Never raises."""
        if self._term:
            term, self._term = self._term, 0
            try:
                self._end(term, "it stopped")
            except HappyError as error:  # the others wait for the lease
                log.warning("term %d: %s", term, error)

    # --- parts -----------------------------------------------------------------------------------

    def _keep(self, now: float) -> None:
        """Still ours? Then say that we live: the time that counts is that before we asked."""
        if self._store.exists(f"{_folder(self._term)}/end.json"):
            log.warning("term %d was ended by another orchestrator", self._term)
            self._term = 0
        else:
            self._beats += 1
            self._store.put_json(f"{_folder(self._term)}/beat.json", {"owner": self._owner, "sequence": self._beats})
            self._confirmed = now

    def _try(self) -> None:
        terms = [name for name in self._store.folders("leader") if name.isdecimal()]
        last = int(terms[-1]) if terms else 0
        if last and not self._over(last):
            return
        now = time.monotonic()
        begin = {"owner": self._owner, "time": time.time(), **_process()}
        if self._store.create_json(f"{_folder(last + 1)}/begin.json", begin):
            self._term, self._confirmed, self._beats = last + 1, now, 0
            self._leader = begin
            log.info("leads, term %d", self._term)
            self._tidy(terms)

    def _over(self, term: int) -> bool:
        """Whether a term has ended; ends it if its holder must be dead."""
        if self._store.exists(f"{_folder(term)}/end.json"):
            self._leader = {}
            return True
        begin = self._store.find_json(f"{_folder(term)}/begin.json") or {}
        self._leader = begin
        if _gone(begin):
            return self._end(term, "its process is gone")
        beat = self._store.find_json(f"{_folder(term)}/beat.json") or {}
        sign = (term, beat.get("sequence"))
        if sign != self._seen[0]:
            self._seen = (sign, time.monotonic())
        elif time.monotonic() - self._seen[1] > LEASE_S:
            return self._end(term, f"no heartbeat for {LEASE_S:.0f} s")
        return False

    def _end(self, term: int, why: str) -> bool:
        self._store.create_json(f"{_folder(term)}/end.json", {"by": self._owner, "why": why, "time": time.time()})
        log.info("term %d is over: %s", term, why)
        return True

    def _tidy(self, terms: list[str]) -> None:
        """Forget terms of long ago. The last ones stay: who was paused must find its term ended."""
        for name in terms[:-100]:
            for path in list(self._store.list(f"leader/{name}")):
                self._store.delete(path)

    # --- notes -----------------------------------------------------------------------------------

    def note(self, run_id: str) -> None:
        """Tell the leader to look at a run now. Never raises: it looks by itself before long."""
        try:
            self._store.put(f"{NOTES}/{run_id}/{os.urandom(6).hex()}", b"")
        except HappyError as error:
            log.warning("run %s: no note for the leader: %s", run_id, error)

    def notes(self) -> dict[str, list[str]]:
        """Run → paths of the notes about it. Raises StoreError."""
        found: dict[str, list[str]] = {}
        for path in self._store.list(NOTES):
            found.setdefault(path.split("/")[-2], []).append(path)
        return found

    def done_with(self, paths: list[str]) -> None:
        """The runs were looked at after these notes were seen. Raises StoreError."""
        for path in paths:
            self._store.delete(path)


def _folder(term: int) -> str:
    return f"leader/{term:08d}"


def _process() -> dict[str, Any]:
    """This process among those of its host. Containers on one host have process numbers of their own."""
    own = psutil.Process()
    return {"host": socket.gethostname(), "pid": own.pid, "pids": _pid_namespace(), "started": own.create_time()}


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _gone(begin: dict[str, Any]) -> bool:
    """Whether who began a term was a process of this host that is no more."""
    if begin.get("host") != socket.gethostname() or begin.get("pids") != _pid_namespace():
        return False
    try:
        process = psutil.Process(begin["pid"])
        return bool(abs(process.create_time() - begin["started"]) > 1 or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

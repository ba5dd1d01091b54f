"""The jobs of one stage server: its queue, its processes, and what is written down about them.

A thread watches the pool. What leaves it without having said so in the store (killed, or gone
before an attempt began) is written down there before the pool forgets it, so that every later
question is answered from the store alone.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from happyneurons.errors import (
    EXIT_USAGE,
    HappyError,
    OverloadedError,
    PreconditionError,
    SupersededError,
    UnavailableError,
)
from happyneurons.jobs.attempts import (
    Attempt,
    EndState,
    attempt_end,
    attempt_numbers,
    owner_id,
    request_cancel,
    settle,
    supersede,
)
from happyneurons.jobs.liveness import Liveness, last_line, printed, processes_gone
from happyneurons.jobs.spec import JobSpec, Resources, job_uri, save_spec
from happyneurons.store.documents import Store
from happyneurons.v1 import jobs_pb2
from happyneurons.worker.job_view import JobView, submission_path, view_job
from happyneurons.worker.launch import Launch, LocalPool

log = logging.getLogger("happyneurons.worker.server")

REAP_S = 0.3
STARTING = "its processes start"
CANCELLED = "cancelled by its owner"


@dataclass
class Submitted:
    """One job in the pool."""

    token: str
    after_attempt: int
    cancel_reason: str = ""
    """Set: its attempt is to be cancelled as soon as it begins."""


class StageJobs:
    """Jobs of a store, some of which this process queues and starts. Thread-safe."""

    def __init__(
        self,
        store: Store,
        cores: int | None,
        memory_gb: float | None,
        folder: Path | None = None,
        *,
        max_queued: int | None = None,
    ) -> None:
        """max_queued: jobs that may wait for cores; more are refused with OverloadedError (default: no limit)."""
        self.store, self.pool, self._max_queued = store, LocalPool(cores, memory_gb, folder), max_queued
        self._draining = False
        self._owner = owner_id()
        self._here: dict[str, Submitted] = {}
        self._lock = threading.RLock()
        self._liveness = Liveness(store)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reaper", daemon=True)

    def __enter__(self) -> StageJobs:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Running attempts go on; what stands in the queue is forgotten."""
        self._closed.set()
        self._thread.join()

    # --- what is asked ---------------------------------------------------------------------------

    def view(self, key: str) -> JobView:
        """A job as it stands. Raises NotFoundError."""
        with self._lock:
            submitted = self._here.get(key)
            queued = None
            if submitted is not None:
                state, _ = self.pool.poll().get(submitted.token, ("waiting", None))
                queued = self.pool.explain(submitted.token) if state == "waiting" else STARTING
        view = view_job(self.store, key, queued, self._thought_dead)
        if view.final:
            self._liveness.forget(key)
        return view

    def submit(self, spec: JobSpec, resources: Resources, retry_quarantined: bool = False) -> JobView:
        """Attempt a job unless it has its result, is queued or at work; `job.reused` says that it had it.

        Raises PreconditionError if this server can never give what it asks for, OverloadedError if it has no room
        now.
        """
        with self._lock:
            problem = self.pool.refuse(resources)
            if problem and settle(self.store, spec.key) is None:
                raise PreconditionError(f"stage {spec.stage}: {problem}", [("spec.resources", problem)])
            save_spec(self.store, spec)
            view = self.view(spec.key)
            if view.job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
                view.job.reused = True
                return view
            if view.job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING):
                return view
            self._check_room(resources)
            self._launch(spec.key, view, resources, retry_quarantined)
            return self.view(spec.key)

    def drain(self, limit_s: float) -> None:
        """Take nothing new, forget the queue, ask what runs to stop, and wait until it has, for so long at most."""
        with self._lock:
            self._draining = True
            states = self.pool.poll()
            for key, submitted in list(self._here.items()):
                if states[submitted.token][0] == "waiting":
                    del self._here[key]  # nothing was begun: whoever submitted it does so elsewhere
                self.pool.terminate(submitted.token)
        deadline = time.monotonic() + limit_s
        while self._here and time.monotonic() < deadline:
            time.sleep(REAP_S)  # the reaper writes down how they end

    def cancel(self, key: str, reason: str) -> JobView:
        """Ask a job to stop; harmless when it is over. Raises NotFoundError."""
        with self._lock:
            view, submitted = self.view(key), self._here.get(key)
            if view.final:
                return view
            if submitted is not None:
                submitted.cancel_reason = reason
                if self.pool.poll()[submitted.token][0] == "waiting":
                    self.pool.terminate(submitted.token)
                self._reap()
            elif view.job.state == jobs_pb2.JOB_STATE_WAITING:
                self._write_ended(key, "cancelled", reason)
            else:
                request_cancel(self.store, key, view.job.attempt, reason)
            return self.view(key)

    def _check_room(self, resources: Resources) -> None:
        if self._draining:
            raise UnavailableError("this stage server is stopping; try another one")
        if self._max_queued is None:
            return
        self._reap()
        room = self.pool.room()
        if not room.fits(resources) and room.waiting >= self._max_queued:
            free = f"{room.cores} of {self.pool.cores} cores are free, {room.waiting} jobs wait"
            raise OverloadedError(f"no room for another job now: {free}")

    # --- starting --------------------------------------------------------------------------------

    def _launch(self, key: str, view: JobView, resources: Resources, retry_quarantined: bool) -> None:
        last = view.job.attempt
        if last and attempt_end(self.store, key, last) is None:
            supersede(self.store, key, last, self._owner, view.job.failure.message)
        before = self.store.find_json(submission_path(key)) or {}
        submitted = Submitted(f"{key}-{uuid.uuid4().hex[:12]}", last)
        document = {
            "number": int(before.get("number", 0)) + 1,
            "time": time.time(),
            "after_attempt": last,
            "resources": resources.model_dump(mode="json"),
            "server": self._owner,
        }
        self.store.put_json(submission_path(key), document)
        launch = Launch(job_uri(self.store, key), resources, retry_quarantined=retry_quarantined)
        self.pool.submit(submitted.token, launch)
        self._here[key] = submitted
        self._reap()  # it may be over already, if its processes could not be started
        log.info("job %s submitted", key)

    # --- ends ------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._closed.wait(REAP_S):
            try:
                with self._lock:
                    self._reap()
            except Exception:  # the queue must not stand still because of one job
                log.exception("looking after jobs failed; again in %s s", REAP_S)

    def _reap(self) -> None:
        """Start what there is room for; write down the ends that nobody else wrote down."""
        states = self.pool.poll()
        for key, submitted in list(self._here.items()):
            state, code = states[submitted.token]
            try:
                if submitted.cancel_reason and state == "running":
                    self._pass_on_cancel(key, submitted)
                if state != "exited":
                    continue
                self._write_down(key, submitted, code)
            except HappyError as error:  # the store is away: again next time
                log.warning("job %s: %s", key, error)
                continue
            del self._here[key]
        tokens = {submitted.token for submitted in self._here.values()}
        for token, (state, _) in states.items():
            if state == "exited" and token not in tokens:
                self.pool.forget(token)

    def _pass_on_cancel(self, key: str, submitted: Submitted) -> None:
        numbers = attempt_numbers(self.store, key)
        if numbers and numbers[-1] > submitted.after_attempt:
            request_cancel(self.store, key, numbers[-1], submitted.cancel_reason)

    def _write_down(self, key: str, submitted: Submitted, code: int | None) -> None:
        """Its processes are gone: see to it that the store says how it ended."""
        numbers = attempt_numbers(self.store, key)
        number = numbers[-1] if numbers else 0
        if number > submitted.after_attempt:
            # An open attempt may be another server's that was faster than ours; that one is left alone.
            if attempt_end(self.store, key, number) is None and processes_gone(self.store, key, number):
                self._close(key, number, submitted, code)
        elif submitted.cancel_reason:
            self._write_ended(key, "cancelled", submitted.cancel_reason)
        elif settle(self.store, key) is None:
            output = last_line(printed(self.store, key, number))
            if code == EXIT_USAGE:
                self._write_ended(key, "failed", output.removeprefix("hpn-stage: "), "user")
            else:
                what = f"its processes ended before it began (exit code {code})"
                self._write_ended(key, "failed", f"{what}: {output}" if output else what, "infrastructure")

    def _close(self, key: str, number: int, submitted: Submitted, code: int | None) -> None:
        output = last_line(printed(self.store, key, number))
        died = f"its processes died (exit code {code})" + (f": {output}" if output else "")
        if not submitted.cancel_reason:
            supersede(self.store, key, number, self._owner, died)
            return
        try:
            Attempt(self.store, key, number, self._owner).end(EndState.CANCELLED, CANCELLED)
        except SupersededError:
            return  # it ended by itself after all

    def _write_ended(self, key: str, state: str, message: str, kind: str = "") -> None:
        document = self.store.find_json(submission_path(key))
        if document is not None and document.get("ended") is None:
            ended = {"state": state, "message": message, "kind": kind, "time": time.time()}
            self.store.put_json(submission_path(key), {**document, "ended": ended})

    # --- life and death --------------------------------------------------------------------------

    def _thought_dead(self, key: str, number: int, progress: Mapping[str, Any] | None) -> str | None:
        """Why an open attempt must be dead, or None: the clock that counts is our own."""
        why = self._liveness.death(key, number, progress)
        with self._lock:
            if why is not None and key in self._here and processes_gone(self.store, key, number):
                return None  # the reaper is about to write down how they ended
        return why

"""The orchestrator: all runs of a store, the thread that drives them, and what clients ask of it."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from happyneurons.errors import ConflictError, HappyError, NotFoundError, StoreError, UserError
from happyneurons.executors.base import Executor, ProcessState
from happyneurons.jobs.attempts import owner_id
from happyneurons.orchestrator import yaml_source
from happyneurons.orchestrator.bounds import Bounds
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.graph import Pipeline
from happyneurons.orchestrator.leadership import LISTEN_S, LOOK_S, Leadership
from happyneurons.orchestrator.pipeline import PipelineError, parse_pipeline
from happyneurons.orchestrator.runlog import (
    LogConflictError,
    create_run,
    list_runs,
    load_run_spec,
    now,
    read_events,
    run_folder,
)
from happyneurons.orchestrator.state import RUN_FINAL, JobPhase, RunPhase, RunStatus
from happyneurons.store.documents import Store, canonical_json

log = logging.getLogger("happyneurons.orchestrator")

TICK_S = 0.5
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
"""Ids come from clients and become a part of a path."""

KEEP_S = 120.0
"""How long a finished run stays in memory after somebody asked for it; it is loaded again when asked for later. Longer
than between two scrapes of the metrics, which would miss it."""


class RequestConflictError(ConflictError):
    """A request id was used for something else."""


class Orchestrator:
    """Runs of one store. `start` takes up what a predecessor left.

    Of several on a store one leads and drives all runs (:mod:`happyneurons.orchestrator.leadership`); the others
    answer, write decisions down for it, and take over when it is gone.

    drive: False for one that only reads, following what others write (`hpn status` without a server).
    bounds: what pipelines may ask and read.
    """

    def __init__(
        self, store: Store, sites: Mapping[str, Executor], default_site: str = "local", *, drive: bool = True,
        bounds: Bounds = Bounds(),  # noqa: B008 (frozen)
    ) -> None:  # fmt: skip
        self.store, self.sites, self.default_site, self.drive = store, sites, default_site, drive
        self.bounds = bounds
        self.owner = owner_id()
        self._leadership = Leadership(store, self.owner)
        self._drivers: dict[str, RunDriver] = {}
        self._own: set[str] = set()
        self._asked: dict[str, float] = {}
        self._resume = True
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._due: set[str] = set()
        """Runs to look at before the next look at all of them."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._beats = threading.Thread(target=self._lead, name="leader", daemon=True)
        self._led: bool | None = None
        self._next_tick = self._next_notes = self._next_look = 0.0
        self._unclear: dict[str, float] = {}  # run of a note that is not there yet → since when
        self._summarized: dict[str, RunPhase] = {}
        self.ticks = 0
        self.tick_s = 0.0
        """How long the latest look at all runs took."""
        self.last_error = ""

    def start(self, *, resume: bool = True) -> None:
        """Take part in leading the store's runs: take up unfinished ones and drive them, and those that come.

        Without `resume` only what is submitted to this one, or adopted, is driven, whoever leads.
        """
        self._resume = resume
        if self.drive:
            self.store.check_writable()
        if self.drive and resume:
            self._leadership.look()
            self._change_roles()
            self._beats.start()
        self._thread.start()

    @property
    def leads(self) -> bool:
        """Whether this one drives runs that it was not asked to drive."""
        return self.drive and (not self._resume or self._leadership.leads)

    @property
    def stands_by(self) -> bool:
        """Whether another one drives the runs that are submitted here."""
        return self.drive and not self.leads

    @property
    def leader(self) -> dict[str, Any]:
        """Who leads, as far as this one knows: owner, host, time; empty if nobody does."""
        return self._leadership.leader

    @property
    def term(self) -> int:
        """Number of the term in which this one leads; 0 if it does not."""
        return self._leadership.term if self._leadership.leads else 0

    def halt(self) -> None:
        """Stop driving and let the lead go. Running jobs go on; a successor finds them."""
        self._closed.set()
        self._wake.set()
        for thread in (self._thread, self._beats):
            if thread.is_alive():
                thread.join(timeout=30)
        self._leadership.resign()

    def drain(self, limit_s: float) -> None:
        """After `halt`: ask the jobs that run on this machine to stop, and wait until they have."""
        assert self._closed.is_set()
        pending = []
        for driver in self.drivers():
            for job in driver.status.jobs.values():
                executor = self.sites.get(job.job.site)
                if executor and executor.kind == "local" and job.handle:
                    executor.cancel(job.handle)
                    pending.append((executor, job.handle))
        deadline = time.monotonic() + limit_s
        at_work = (ProcessState.QUEUED, ProcessState.RUNNING)
        while any(executor.poll([handle])[handle].state in at_work for executor, handle in pending):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def close(self) -> None:
        """Stop driving and let go of the sites."""
        self.halt()
        for executor in self.sites.values():
            executor.close()

    # --- runs ----------------------------------------------------------------------------------

    def validate(self, spec: Mapping[str, Any], *, unbounded: bool = False) -> Pipeline:
        """Parse and check a pipeline, including what its first jobs read. Raises PipelineError, UserError.

        unbounded: however large it is.
        """
        bounds = self.bounds.without_size() if unbounded else self.bounds
        bounds.check_text(spec)
        source = yaml_source.parse(spec["yaml"])
        pipeline = parse_pipeline(
            spec["yaml"], spec["parameters"], source_name=spec["source_name"], base_uri=spec["base_uri"],
            default_site=spec.get("default_site") or self.default_site, sites=list(self.sites), most_jobs=bounds.jobs,
            source=source,  # what is found here gets its line, too
        )  # fmt: skip
        for job_name, path, text in bounds.refused(pipeline, self.store):
            source.complain(("jobs", job_name.partition("[")[0], *path.split(".")), text)
        if source.violations:  # before anything is opened
            raise PipelineError(spec["source_name"], list(dict.fromkeys(source.violations)))
        probe = RunDriver(self.store, RunStatus.fresh("", pipeline, {"time": 0.0}), self.sites, lambda *_: None, "")
        for job in [*pipeline.templates.values(), *pipeline.jobs.values()]:
            refusal = self.sites[job.site].refuse(job.stage, job.resources)
            place = ("jobs", job.name.partition("[")[0])  # jobs of a sweep stand in the text once
            if refusal:
                source.complain((*place, "resources"), refusal)
            if not job.references() and not job.each:
                try:
                    probe.spec_of(job)
                except UserError as error:
                    for path, text in error.violations or [("params", str(error))]:
                        source.complain((*place, *path.split(".")), text)
        if source.violations:
            raise PipelineError(spec["source_name"], list(dict.fromkeys(source.violations)))
        return pipeline

    def submit(
        self, spec: Mapping[str, Any], request_id: str = "", *, by: str = "", unbounded: bool = False
    ) -> RunDriver:  # fmt: skip
        """Start a run, or find the one that the same request id started before.

        by: who submits it. unbounded: however large it is.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run_id = f"{stamp}-{os.urandom(3).hex()}"
        pipeline = self.validate(spec, unbounded=unbounded)
        document = {**spec, "time": now(), "request_id": request_id} | ({"submitted_by": by} if by else {})
        if request_id:
            digest = hashlib.sha256(canonical_json(dict(spec))).hexdigest()
            # Ids of one project say nothing of those of another.
            wish = f"{spec['project']}/{request_id}" if "project" in spec else request_id
            path = f"requests/{hashlib.sha256(wish.encode()).hexdigest()}.json"
            if not self.store.create_json(path, {"run_id": run_id, "digest": digest}):
                known = self.store.get_json(path)
                if known["digest"] != digest:
                    raise RequestConflictError(f"request id {request_id!r} was used for another pipeline")
                run_id = known["run_id"]
        if self.stands_by:
            self._leadership.note(run_id)  # before, too: the leader learns of it even if this process ends here
        if create_run(self.store, run_id, document):
            # Nobody else knows of it: neither its text nor its log has to be read from the store.
            driver = self._keep(self._new_driver(run_id, pipeline, document))
        else:
            driver = self.driver(run_id)
        self._say_submitted(driver)
        return self.adopt(run_id)

    def _say_submitted(self, driver: RunDriver) -> None:
        """Begin a run's log, unless that was done: by whoever took the same request, or by the leader."""
        with driver.changed:
            if driver.status.last_event == 0:
                by = driver.status.spec.get("submitted_by")
                try:
                    driver.record("run_submitted", **({"by": by} if by else {}))
                except LogConflictError:
                    driver.observe()

    def driver(self, run_id: str) -> RunDriver:
        """The driver of a run, loaded from its log if need be. Raises NotFoundError, StoreError."""
        known = self._drivers.get(run_id)
        if known is None:
            known = self._load(run_id)
        elif self.stands_by:
            known.observe()  # what the leader wrote a moment ago counts
        self._asked[run_id] = time.monotonic()
        return known

    def adopt(self, run_id: str) -> RunDriver:
        """The driver of a run that has to be looked at now, by this one or by the leader. Raises NotFoundError."""
        if self.stands_by:
            self._leadership.note(run_id)
            return self.driver(run_id)
        driver = self.driver(run_id)
        with self._lock:
            self._own.add(run_id)
            self._due.add(run_id)
        self._wake.set()
        return driver

    def summaries(self, before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """`(run id, summary)`, latest first; only runs older than run `before`, if given."""
        for run_id in reversed(list_runs(self.store)):
            if before and run_id >= before:
                continue
            known = self._drivers.get(run_id)
            # One that is over may have been retried at another orchestrator; then its summary says so.
            if known is not None and not (self.stands_by and known.status.phase in RUN_FINAL):
                yield run_id, _summary(known.status)
                continue
            summary = self.store.find_json(f"{run_folder(run_id)}/summary.json")
            if summary is None or RunPhase(summary["phase"]) not in RUN_FINAL:
                try:
                    summary = _summary(self.driver(run_id).status)
                except HappyError as error:
                    log.error("run %s: %s", run_id, error)
                    continue
            yield run_id, summary

    def drivers(self) -> list[RunDriver]:
        """All runs in memory: the unfinished ones and those that somebody asked for."""
        with self._lock:
            return list(self._drivers.values())

    def wake(self) -> None:
        """Look at all runs now rather than at the next tick."""
        self._next_tick = 0.0
        self._wake.set()

    def _load(self, run_id: str) -> RunDriver:
        spec = load_run_spec(self.store, run_id) if RUN_ID.match(run_id) else None
        if spec is None:
            raise NotFoundError(f"no run {run_id!r} in {self.store.uri}")
        pipeline = parse_pipeline(
            spec["yaml"], spec["parameters"], source_name=spec["source_name"], base_uri=spec["base_uri"],
            default_site=spec.get("default_site") or self.default_site,
        )  # fmt: skip
        driver = self._new_driver(run_id, pipeline, spec)
        for event in read_events(self.store, run_id):
            driver.replay(event)
            driver.loaded_until = event.time + 0.001  # their times are in milliseconds
        return self._keep(driver)

    def _new_driver(self, run_id: str, pipeline: Pipeline, spec: dict[str, Any]) -> RunDriver:
        status = RunStatus.fresh(run_id, pipeline, spec)
        return RunDriver(self.store, status, self.sites, self.busy_elsewhere, self.owner)

    def _keep(self, driver: RunDriver) -> RunDriver:
        """The one driver of its run in this process: this one, unless another call was first."""
        with self._lock:
            return self._drivers.setdefault(driver.status.run_id, driver)

    def _let_go(self) -> None:
        """Forget finished runs that nobody asks for: a server that has had a million of them is no larger."""
        now = time.monotonic()
        for driver in self.drivers():
            run_id = driver.status.run_id
            if driver.status.phase not in RUN_FINAL:
                self._asked[run_id] = now
            elif now - self._asked.setdefault(run_id, now) > KEEP_S:
                with self._lock:
                    self._drivers.pop(run_id, None)
                self._asked.pop(run_id, None)
                self._own.discard(run_id)
                self._summarized.pop(run_id, None)

    def busy_elsewhere(self, run_id: str, key: str) -> str | None:
        """Another run in which the job of this key is at work."""
        for other, driver in list(self._drivers.items()):
            for job in driver.status.jobs.values():
                at_work = job.key == key and job.phase in (JobPhase.QUEUED, JobPhase.RUNNING)
                if other != run_id and at_work:
                    return other
        return None

    # --- the threads -----------------------------------------------------------------------------

    def _lead(self) -> None:
        """Keep the lead, or wait for it."""
        while not self._closed.wait(TICK_S):
            try:
                led = self._leadership.leads
                if self._leadership.look() != led:
                    self.wake()
            except HappyError as error:  # the store is away: without heartbeats nobody leads before long
                log.error("leading: %s", error)

    def _change_roles(self) -> None:
        """Take up what the leader before left, or leave it to the next; look at what the others noted."""
        leads, now = self.leads, time.monotonic()
        if leads != self._led:
            if leads and self._resume:
                self._take_up()
            for executor in self.sites.values():
                executor.lead(leads)
            self._led = leads
        if leads and self._resume and now >= self._next_notes:
            self._next_notes = now + LISTEN_S
            self._read_notes(now)
            if now >= self._next_look:
                self._next_look = now + LOOK_S
                for driver in self.drivers():
                    if driver.status.phase not in RUN_FINAL:
                        driver.observe()

    def _take_up(self) -> None:
        """Load the unfinished runs, and what others wrote of those that are loaded."""
        for driver in self.drivers():
            driver.observe()
        for run_id in list_runs(self.store):
            if run_id in self._drivers:
                continue
            summary = self.store.find_json(f"{run_folder(run_id)}/summary.json")
            if summary is None or RunPhase(summary["phase"]) not in RUN_FINAL:
                try:
                    self._load(run_id)
                except StoreError:
                    raise
                except HappyError as error:  # its stages are not installed here, say: the others go on
                    log.error("run %s cannot be resumed: %s", run_id, error)

    def _read_notes(self, now: float) -> None:
        for run_id, paths in self._leadership.notes().items():
            try:
                driver = self.driver(run_id)
                driver.observe()
                if driver.intake is not None:
                    driver.intake.reports.reload()
            except StoreError:
                raise
            except HappyError as error:
                # Noted before it was written; if it is not written soon, it never will be.
                if now - self._unclear.setdefault(run_id, now) < LOOK_S:
                    continue
                log.error("run %s: %s", run_id, error)
            self._unclear.pop(run_id, None)
            self._leadership.done_with(paths)

    def _loop(self) -> None:
        """Look at all runs every TICK_S, and in between at those that something was asked of."""
        while not self._closed.is_set():
            self._wake.clear()
            begin, problem = time.monotonic(), ""
            everything = begin >= self._next_tick
            if everything:
                self._next_tick = math.inf  # until this look is over, unless somebody wakes us
            try:
                self._change_roles()
            except HappyError as error:
                problem = str(error)
                log.error("leading: %s", error)
            with self._lock:
                due, self._due = self._due, set()
                drivers = [d for n, d in self._drivers.items() if everything or n in due]
            for driver in drivers:
                problem = self._look_at(driver) or problem
            if everything:
                self._let_go()
                self.ticks, self.tick_s = self.ticks + 1, time.monotonic() - begin
                self._next_tick = min(self._next_tick, time.monotonic() + TICK_S)
            if everything or problem:  # of any run: that another one went well does not end it
                self.last_error = problem
            self._wake.wait(min(TICK_S, max(0.0, self._next_tick - time.monotonic())))

    def _look_at(self, driver: RunDriver) -> str:
        """Do what can be done for one run; returns what went wrong."""
        try:
            if not self._drives(driver):
                if driver.status.phase not in RUN_FINAL:
                    driver.observe()
                return ""
            self._say_submitted(driver)
            driver.tick()
            self._write_summary(driver.status)
        except LogConflictError as error:
            log.warning("%s: reading what it wrote", error)
            self.catch_up(driver)
        except HappyError as error:  # the store is away, say: the state is in the log, try again
            log.error("run %s: %s", driver.status.run_id, error)
            return str(error)
        except Exception as error:
            log.exception("run %s", driver.status.run_id)
            return f"{type(error).__name__}: {error}"
        return ""

    def _drives(self, driver: RunDriver) -> bool:
        if not self.drive:
            return False
        return bool(self._led) and self._leadership.leads if self._resume else driver.status.run_id in self._own

    def catch_up(self, driver: RunDriver) -> None:
        """Take over what another orchestrator wrote."""
        try:
            driver.observe()
        except HappyError as error:
            log.error("run %s: %s", driver.status.run_id, error)

    def _write_summary(self, status: RunStatus) -> None:
        """What lists of runs show, and by which a successor knows whether a run is over."""
        if self._summarized.get(status.run_id) is status.phase:
            return
        self._summarized[status.run_id] = status.phase
        self.store.put_json(f"{run_folder(status.run_id)}/summary.json", _summary(status))


def _summary(status: RunStatus) -> dict[str, Any]:
    return {
        "name": status.pipeline.name,
        "phase": status.phase.value,
        "message": status.message,
        "project": status.project,
        "submit_time": status.submit_time,
        "end_time": status.end_time,
        "last_event": status.last_event,
    }

"""The orchestrator: all runs of a store, the thread that drives them, and what clients ask of it."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from happyneurons.errors import ConflictError, HappyError, NotFoundError, UserError
from happyneurons.executors.base import Executor, ProcessState
from happyneurons.jobs.attempts import owner_id
from happyneurons.orchestrator import yaml_source
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.graph import Pipeline
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

KEEP_S = 120.0
"""How long a finished run stays in memory after somebody asked for it; it is loaded again when asked for later. Longer
than between two scrapes of the metrics, which would miss it."""


class RequestConflictError(ConflictError):
    """A request id was used for something else."""


class Orchestrator:
    """Runs of one store. `start` takes up what a predecessor left.

    drive: False for one that only reads, following what others write (`hpn status` without a server).
    """

    def __init__(
        self, store: Store, sites: Mapping[str, Executor], default_site: str = "local", *, drive: bool = True
    ) -> None:
        self.store, self.sites, self.default_site, self.drive = store, sites, default_site, drive
        self.owner = owner_id()
        self._drivers: dict[str, RunDriver] = {}
        self._own: set[str] = set()
        self._asked: dict[str, float] = {}
        self._resume = True
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self.ticks = 0
        self.tick_s = 0.0
        """How long the latest look at all runs took."""
        self.last_error = ""

    def start(self, *, resume: bool = True) -> None:
        """Replay unfinished runs and begin to drive them, and those that come.

        Without `resume` only what is submitted to this one, or adopted, is driven.
        """
        self._resume = resume
        if self.drive:
            self.store.check_writable()
        for run_id in list_runs(self.store) if resume and self.drive else []:
            summary = self.store.find_json(f"{run_folder(run_id)}/summary.json")
            if summary is None or RunPhase(summary["phase"]) not in RUN_FINAL:
                try:
                    self._load(run_id)
                except HappyError as error:  # its stages are not installed here, say: the others go on
                    log.error("run %s cannot be resumed: %s", run_id, error)
        self._thread.start()

    @property
    def leads(self) -> bool:
        """Whether it drives the runs of its store, and so tells of them."""
        return self.drive and not self._closed

    def halt(self) -> None:
        """Stop driving. Running jobs go on; a successor finds them."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def drain(self, limit_s: float) -> None:
        """After `halt`: ask the jobs that run on this machine to stop, and wait until they have."""
        assert self._closed
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

    def validate(self, spec: Mapping[str, Any]) -> Pipeline:
        """Parse and check a pipeline, including what its first jobs read. Raises PipelineError."""
        pipeline = parse_pipeline(
            spec["yaml"], spec["parameters"], source_name=spec["source_name"], base_uri=spec["base_uri"],
            default_site=spec.get("default_site") or self.default_site, sites=list(self.sites),
        )  # fmt: skip
        # Parsed again for the places of fields: what is found here gets its line, too.
        source = yaml_source.parse(spec["yaml"])
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

    def submit(self, spec: Mapping[str, Any], request_id: str = "") -> RunDriver:
        """Start a run, or find the one that the same request id started before."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run_id = f"{stamp}-{os.urandom(3).hex()}"
        self.validate(spec)
        document = {**spec, "time": now(), "request_id": request_id}
        if request_id:
            digest = hashlib.sha256(canonical_json(dict(spec))).hexdigest()
            path = f"requests/{hashlib.sha256(request_id.encode()).hexdigest()}.json"
            if not self.store.create_json(path, {"run_id": run_id, "digest": digest}):
                known = self.store.get_json(path)
                if known["digest"] != digest:
                    raise RequestConflictError(f"request id {request_id!r} was used for another pipeline")
                run_id = known["run_id"]
        create_run(self.store, run_id, document)
        driver = self.adopt(run_id)
        with driver.changed:
            if driver.status.last_event == 0:
                driver.record("run_submitted")
        self._wake.set()
        return driver

    def driver(self, run_id: str) -> RunDriver:
        """The driver of a run, loaded from its log if need be. Raises NotFoundError."""
        driver = self._drivers.get(run_id) or self._load(run_id)
        self._asked[run_id] = time.monotonic()
        return driver

    def adopt(self, run_id: str) -> RunDriver:
        """The driver of a run, which this orchestrator drives from now on. Raises NotFoundError."""
        self._own.add(run_id)
        self._wake.set()
        return self.driver(run_id)

    def summaries(self, before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """`(run id, summary)`, latest first; only runs older than run `before`, if given."""
        for run_id in reversed(list_runs(self.store)):
            if before and run_id >= before:
                continue
            known = self._drivers.get(run_id)
            if known is not None:
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
        self._wake.set()

    def _load(self, run_id: str) -> RunDriver:
        spec = load_run_spec(self.store, run_id)
        if spec is None:
            raise NotFoundError(f"no run {run_id!r} in {self.store.uri}")
        pipeline = parse_pipeline(
            spec["yaml"], spec["parameters"], source_name=spec["source_name"], base_uri=spec["base_uri"],
            default_site=spec.get("default_site") or self.default_site,
        )  # fmt: skip
        status = RunStatus.fresh(run_id, pipeline, spec)
        driver = RunDriver(self.store, status, self.sites, self.busy_elsewhere, self.owner)
        for event in read_events(self.store, run_id):
            driver.replay(event)
            driver.loaded_until = event.time + 0.001  # their times are in milliseconds
        with self._lock:
            return self._drivers.setdefault(run_id, driver)

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

    def busy_elsewhere(self, run_id: str, key: str) -> str | None:
        """Another run in which the job of this key is at work."""
        for other, driver in list(self._drivers.items()):
            for job in driver.status.jobs.values():
                at_work = job.key == key and job.phase in (JobPhase.QUEUED, JobPhase.RUNNING)
                if other != run_id and at_work:
                    return other
        return None

    # --- the thread ------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._closed:
            self._wake.clear()
            begin, problem = time.monotonic(), ""
            for driver in self.drivers():
                try:
                    before = driver.status.phase
                    if not self.drive or not (self._resume or driver.status.run_id in self._own):
                        if before not in RUN_FINAL:
                            driver.observe()
                        continue
                    driver.tick()
                    if driver.status.phase is not before:
                        self._write_summary(driver.status)
                except LogConflictError as error:
                    log.warning("%s: reading what it wrote", error)
                    self.catch_up(driver)
                except HappyError as error:  # the store is away, say: the state is in the log, try again
                    problem = str(error)
                    log.error("run %s: %s", driver.status.run_id, error)
                except Exception as error:
                    problem = f"{type(error).__name__}: {error}"
                    log.exception("run %s", driver.status.run_id)
            self._let_go()
            self.last_error = problem  # of any run: that another one went well does not end it
            self.ticks, self.tick_s = self.ticks + 1, time.monotonic() - begin
            self._wake.wait(TICK_S)

    def catch_up(self, driver: RunDriver) -> None:
        """Take over what another orchestrator wrote."""
        try:
            driver.observe()
        except HappyError as error:
            log.error("run %s: %s", driver.status.run_id, error)

    def _write_summary(self, status: RunStatus) -> None:
        self.store.put_json(f"{run_folder(status.run_id)}/summary.json", _summary(status))


def _summary(status: RunStatus) -> dict[str, Any]:
    return {
        "name": status.pipeline.name,
        "phase": status.phase.value,
        "message": status.message,
        "submit_time": status.submit_time,
        "end_time": status.end_time,
        "last_event": status.last_event,
    }

"""The orchestrator: all runs of a store, the thread that drives them, and what clients ask of it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from happyneurons.errors import ConflictError, HappyError, NotFoundError, UserError
from happyneurons.executors.base import Executor, ProcessState
from happyneurons.jobs.attempts import owner_id
from happyneurons.orchestrator import yaml_source
from happyneurons.orchestrator.bounds import Bounds
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
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
"""Ids come from clients and become a part of a path."""


class RequestConflictError(ConflictError):
    """A request id was used for something else."""


class Orchestrator:
    """Runs of one store. `start` takes up what a predecessor left.

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
        self._drivers: dict[str, RunDriver] = {}
        self._own: set[str] = set()
        self._resume = True
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self.ticks = 0
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

    def validate(self, spec: Mapping[str, Any], *, unbounded: bool = False) -> Pipeline:
        """Parse and check a pipeline, including what its first jobs read. Raises PipelineError, UserError.

        unbounded: however large it is.
        """
        bounds = self.bounds.without_size() if unbounded else self.bounds
        bounds.check_text(spec)
        pipeline = parse_pipeline(
            spec["yaml"], spec["parameters"], source_name=spec["source_name"], base_uri=spec["base_uri"],
            default_site=spec.get("default_site") or self.default_site, sites=list(self.sites), most_jobs=bounds.jobs,
        )  # fmt: skip
        # Parsed again for the places of fields: what is found here gets its line, too.
        source = yaml_source.parse(spec["yaml"])
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
        self.validate(spec, unbounded=unbounded)
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
        create_run(self.store, run_id, document)
        driver = self.adopt(run_id)
        with driver.changed:
            if driver.status.last_event == 0:
                driver.record("run_submitted", **({"by": by} if by else {}))
        self._wake.set()
        return driver

    def driver(self, run_id: str) -> RunDriver:
        """The driver of a run, loaded from its log if need be. Raises NotFoundError."""
        return self._drivers.get(run_id) or self._load(run_id)

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
            if run_id in self._drivers:
                yield run_id, _summary(self._drivers[run_id].status)
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
        spec = load_run_spec(self.store, run_id) if RUN_ID.match(run_id) else None
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
        with self._lock:
            return self._drivers.setdefault(run_id, driver)

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
                    self.last_error = ""
                except LogConflictError as error:
                    log.warning("%s: reading what it wrote", error)
                    self.catch_up(driver)
                except HappyError as error:  # the store is away, say: the state is in the log, try again
                    self.last_error = str(error)
                    log.error("run %s: %s", driver.status.run_id, error)
                except Exception as error:
                    self.last_error = f"{type(error).__name__}: {error}"
                    log.exception("run %s", driver.status.run_id)
            self.ticks += 1
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
        "project": status.project,
        "submit_time": status.submit_time,
        "end_time": status.end_time,
        "last_event": status.last_event,
    }

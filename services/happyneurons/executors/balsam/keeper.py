"""The part of the elastic pool that acts: asks for batch jobs, gives them back, minds refusals, counts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from happyneurons.errors import UserError
from happyneurons.executors.balsam.api import BalsamApi, Record
from happyneurons.executors.balsam.config import PoolLimits
from happyneurons.executors.balsam.nodes import batch_job_request
from happyneurons.executors.balsam.pool import GiveBack, Request, decide
from happyneurons.executors.balsam.records import (
    LIVE,
    WAITING,
    BalsamJob,
    BatchJob,
    pool_tags,
    read_batch_job,
)
from happyneurons.executors.base import PoolStatus
from happyneurons.hpc.folders import SiteFolder

log = logging.getLogger("happyneurons.executors.balsam")
FIRST_HOLD_S, LONGEST_HOLD_S = 30.0, 1800.0
SETTLE_S = 10.0
IN_LAUNCHER = ["PREPROCESSED", "RESTART_READY", "RUNNING"]


class PoolKeeper:
    """Keeps the pool of one site. Called by the executor's thread; `status` by anyone."""

    def __init__(self, name: str, folder: SiteFolder, limits: PoolLimits, api: BalsamApi) -> None:
        self._name, self._folder, self._limits, self._api = name, folder, limits, api
        self.acts = True
        """False: only counts, as another orchestrator keeps the pool."""
        queue = limits.queue or folder.facts.default_queue
        if limits.max_nodes and queue not in folder.facts.queues:
            known = ", ".join(sorted(folder.facts.queues))
            raise UserError(f"site {name}: pool.queue {queue!r}: site folder {folder.name} has {known}")
        self._queue = folder.facts.queues.get(queue) or folder.facts.queues[folder.facts.default_queue]
        self._idle_since: Mapping[int, float] = {}
        self._known: dict[int, BatchJob] = {}  # live at the last look
        self._asked: set[int] = set()
        self._ran: set[int] = set()
        self._released: set[int] = set()
        self._hold_until, self._failures, self._refusal = 0.0, 0, ""
        self._last_look: float | None = None
        self._newest, self._growing_since = 0, time.monotonic()
        self._status = PoolStatus()
        self._lock = threading.Lock()

    @property
    def status(self) -> PoolStatus:
        with self._lock:
            return self._status

    @property
    def refusal(self) -> str:
        """What the scheduler said when it refused the last batch job; empty once one runs again."""
        return self._refusal

    def look(self, jobs: Sequence[BalsamJob], batch_jobs: Mapping[int, BatchJob], site: Record) -> None:
        """Count, decide and act on what the server said just now. `batch_jobs`: of the site, not over."""
        now = time.monotonic()
        serving = {n: b for n, b in batch_jobs.items() if b.serves(self._name)}
        self._ran |= self._asked & {job.batch_job for job in jobs if job.batch_job is not None}
        waits = any(job.state in WAITING for job in jobs)
        self._mind_ended([b for n, b in self._known.items() if n not in serving], site, waits)
        if any(b.state == "running" and b.jobs for b in serving.values()):
            self._failures, self._hold_until, self._refusal = 0, 0.0, ""
        self._known = serving
        decision = decide(
            jobs, serving.values(), pool=self._name, limits=self._limits, queue=self._queue,
            idle_since=self._idle_since, now=now, hold_until=self._hold_until,
        )  # fmt: skip
        self._idle_since = decision.idle_since
        self._count(jobs, serving, now, decision.held)
        settled = self._settled(jobs, now)
        for action in decision.actions if self.acts else ():
            if isinstance(action, Request):
                if settled:
                    self._request(action, site)
            else:
                self._give_back(action)

    def _settled(self, jobs: Sequence[BalsamJob], now: float) -> bool:
        """Whether no job came since the last look: what is asked for half-way through a burst has the wrong size."""
        newest = max((job.id for job in jobs), default=0)
        if newest <= self._newest:
            self._growing_since = now
        self._newest = max(newest, self._newest)
        return now - self._growing_since >= SETTLE_S or self._growing_since == now

    def _request(self, request: Request, site: Record) -> None:
        try:
            body = batch_job_request(
                self._folder, self._limits, site, nodes=request.nodes, queue=None, project=None,
                walltime_min=request.walltime_min, options={}, filter_tags=pool_tags(self._name),
            )  # fmt: skip
            record = self._api.create_batch_job(body)
        except UserError as error:
            self._refused(str(error))
            return
        self._asked.add(record["id"])
        log.info("site %s: asked for batch job %s: %s nodes", self._name, record["id"], request.nodes)
        self._add(requested=1)

    def _give_back(self, action: GiveBack) -> None:
        # A launcher may have taken a job since we looked.
        if self._api.jobs(batch_job_id=action.batch_job, state=IN_LAUNCHER):
            return
        self._api.end_batch_job(action.batch_job)
        self._released.add(action.batch_job)
        log.info("site %s: gave back batch job %s: %s", self._name, action.batch_job, action.reason)
        self._add(given_back=1)

    def _mind_ended(self, gone: Sequence[BatchJob], site: Record, waits: bool) -> None:
        """Batch jobs that were there at the last look: did the scheduler refuse them, were they of any use?"""
        own = {b.id for b in gone if b.owned_by(self._name)}
        for record in self._api.find_ids("/batch-jobs/", "id", own) if own else []:
            ended = read_batch_job(record, site)
            if ended.state in LIVE:
                continue
            if ended.state == "submit_failed":
                self._refused(f"batch job {ended.id} was refused: {ended.message or 'no reason was given'}")
            elif waits and ended.id in self._asked - self._ran - self._released:
                self._refused(
                    f"batch job {ended.id} ended without having run a job; see qlaunch{ended.id:05d}.* in the "
                    "site's folder qsubmit"
                )
        for books in (self._asked, self._ran, self._released):
            books -= own

    def _refused(self, message: str) -> None:
        self._failures += 1
        hold = min(LONGEST_HOLD_S, FIRST_HOLD_S * 2 ** (self._failures - 1))
        self._hold_until, self._refusal = time.monotonic() + hold, message
        log.warning("site %s: %s; tried again in %.0f s", self._name, message, hold)
        self._add(refused=1)

    def _add(self, requested: int = 0, given_back: int = 0, refused: int = 0) -> None:
        with self._lock:
            s = self._status
            self._status = replace(
                s, requested=s.requested + requested, given_back=s.given_back + given_back, refused=s.refused + refused
            )

    def _count(self, jobs: Sequence[BalsamJob], serving: Mapping[int, BatchJob], now: float, held: str) -> None:
        running = [b for b in serving.values() if b.minutes_left is not None]
        queued = [b for b in serving.values() if b.minutes_left is None]
        elapsed = 0.0 if self._last_look is None else now - self._last_look
        self._last_look = now
        nodes = sum(b.nodes for b in running)
        with self._lock:
            self._status = replace(
                self._status,
                nodes_queued=sum(b.nodes for b in queued), nodes_running=nodes, batch_jobs_queued=len(queued),
                batch_jobs_running=len(running), jobs_waiting=sum(job.state in WAITING for job in jobs),
                jobs_running=sum(job.running for job in jobs),
                node_seconds=self._status.node_seconds + nodes * elapsed,
                message=self._refusal or held,
            )  # fmt: skip

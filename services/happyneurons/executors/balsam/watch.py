"""The one who talks to the Balsam server: looks at jobs and batch jobs in a few calls, again and again.

A look costs four calls for any number of jobs, and a few more for those that ended or were asked about
for the first time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from happyneurons.errors import HappyError, UnavailableError, UserError
from happyneurons.executors.balsam.api import BalsamApi, Record
from happyneurons.executors.balsam.books import Books
from happyneurons.executors.balsam.config import BalsamAccess
from happyneurons.executors.balsam.explain import View
from happyneurons.executors.balsam.keeper import IN_LAUNCHER, PoolKeeper
from happyneurons.executors.balsam.records import (
    ACTIVE,
    ENDED,
    LIVE,
    TAG_POOL,
    TAG_TOKEN,
    WAITING,
    BalsamJob,
    BatchJob,
    now_utc,
    read_batch_job,
    read_job,
    report_of,
    time_of,
    with_jobs,
)

log = logging.getLogger("happyneurons.executors.balsam")
LOOK_UPS = 50  # handles without a job number that one look asks for
LONGEST_PAUSE_S = 15.0
LOOK_SHARE = 0.25  # of the time may be spent looking, so that a slow server is left alone
BATCH_JOB_OVER_S = 20.0  # Balsam's own news of a job may lag behind that of its batch job


class Watch:
    """A site's jobs and batch jobs as last seen. `run` is the thread; everything else never waits for the server."""

    def __init__(self, name: str, access: BalsamAccess, api: BalsamApi, books: Books, keeper: PoolKeeper) -> None:
        self._name, self._access, self._api, self._books, self._keeper = name, access, api, books, keeper
        self._wake, self._stop = threading.Event(), threading.Event()
        self._looked = threading.Event()
        self._lock = threading.Lock()
        self._away: tuple[datetime, HappyError] | None = None
        self._view = View()
        self._agent: tuple[str, float] | None = None
        self._batch_job_over: dict[str, float] = {}
        self._thread = threading.Thread(target=self.run, name=f"balsam-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(2 * self._access.timeout_s)

    def wake(self) -> None:
        """Look again now rather than later."""
        self._wake.set()

    @property
    def view(self) -> View:
        with self._lock:
            return self._view

    def problem(self) -> str:
        """Why the server does not answer, and since when; empty if it does."""
        with self._lock:
            if self._away is None:
                return ""
            since, error = self._away
        return f"{error} (since {since:%Y-%m-%d %H:%M:%S} UTC)"

    def refuses(self) -> bool:
        """Whether the problem is what we ask for (a site that is not there), not that nobody answers."""
        with self._lock:
            return self._away is not None and isinstance(self._away[1], UserError)

    def note_away(self, error: HappyError) -> None:
        """A call failed: everybody is told until one succeeds."""
        with self._lock:
            since = self._away[0] if self._away else now_utc()
            if self._away is None:
                log.warning("site %s: %s", self._name, error)
            self._away = (since, error)

    def run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            begun = time.monotonic()
            self._wake.clear()
            try:
                self.look()
                with self._lock:
                    if self._away:
                        log.warning("site %s: the Balsam server answers again", self._name)
                    self._away = None
                failures = 0
            except HappyError as error:
                failures += 1
                self.note_away(error)
            except Exception as error:  # an answer that nobody foresaw must not end the watch
                failures += 1
                log.exception("site %s", self._name)
                self.note_away(UnavailableError(f"{self._api.root} gave an answer that was not understood: {error!r}"))
            self._looked.set()
            took = time.monotonic() - begun
            pause = self._access.poll_s * 2 ** min(failures, 8) if failures else self._access.poll_s
            pause = max(min(pause, LONGEST_PAUSE_S), took / LOOK_SHARE - took, 0.05)
            # Asked to hurry, it still leaves the server some peace.
            self._wake.wait(pause)
            self._stop.wait(min(0.2, pause))

    def look(self) -> None:
        """One look. Raises HappyError if the server does not answer or refuses."""
        site = self._api.site(self._access.site)
        jobs = [
            read_job(r) for r in self._api.jobs(site_id=site["id"], tags=[f"{TAG_POOL}:{self._name}"], state=ACTIVE)
        ]
        found = {r["id"]: read_batch_job(r, site) for r in self._api.batch_jobs(site_id=site["id"], state=LIVE)}
        batch_jobs = with_jobs(found, jobs)
        duplicates = self._books.merge(jobs)
        self._look_up({job.id for job in jobs})
        self._mind_lost_ranks(jobs, batch_jobs)
        self._drop([job for job in duplicates if not job.taken], "duplicate", "the same submission is queued already")
        self._mind_cancelled({job.token: job for job in jobs})
        self._keeper.look(jobs, batch_jobs, site)
        self._publish(site, jobs, batch_jobs)
        self._books.prune()

    def _look_up(self, seen: set[int]) -> None:
        """Handles that are not among the active jobs: what became of them?"""
        known, unknown = self._books.missing(seen)
        found = {known[r["id"]]: r for r in self._api.find_ids("/jobs/", "id", known)}
        for handle in set(known.values()) - set(found):
            self._books.lost(handle)
        for handle in unknown[:LOOK_UPS]:
            records = self._api.jobs(tags=[f"{TAG_TOKEN}:{handle}"])
            if records:
                found[handle] = records[0]
            else:
                self._books.lost(handle)
        ended = {h: read_job(r) for h, r in found.items() if r["state"] in ENDED}
        for handle in set(found) - set(ended):
            self._books.adopt(handle, read_job(found[handle]))
        data = self._end_data([job.id for job in ended.values() if job.state != "JOB_FINISHED"])
        for handle, job in ended.items():
            self._books.end(handle, job, report_of(job.state, data.get(job.id, {})))

    def _end_data(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What the events say of how jobs ended: exit code, reason, output. Later ones count."""
        found: dict[int, dict[str, Any]] = {}
        events = self._api.find_ids("/events/", "job_id", ids) if ids else []
        for event in sorted(events, key=lambda e: (e["timestamp"], e["id"])):
            if event["to_state"] in ENDED:
                told = {key: value for key, value in event["data"].items() if value not in (None, "")}
                found.setdefault(event["job_id"], {}).update(told)
        return found

    def _mind_lost_ranks(self, jobs: Sequence[BalsamJob], batch_jobs: dict[int, BatchJob]) -> None:
        """RUNNING in a batch job that is over: its launcher was killed. The server finds out minutes later."""
        now = time.monotonic()
        orphans = {
            job.token: job.batch_job
            for job in jobs
            if job.running and job.batch_job is not None and job.batch_job not in batch_jobs
        }
        self._batch_job_over = {token: self._batch_job_over.get(token, now) for token in orphans}
        for token, since in self._batch_job_over.items():
            entry = self._books.entry(token)
            if entry is not None and not entry.over and now - since > BATCH_JOB_OVER_S:
                self._books.batch_job_over(token, f"batch job {orphans[token]} ended while its ranks ran")

    def _mind_cancelled(self, active: dict[str, BalsamJob]) -> None:
        """Drop what waits; end the batch job of what runs, unless others run in it too.

        What a launcher has taken counts as running: its ranks may be at work before the server hears of it. Also
        what was dropped and reported as over, but runs: a launcher took it at that moment.
        """
        waiting = []
        cancelled = {handle: active[handle] for handle in self._books.cancelled() if handle in active}
        unwanted = {job.id for job in cancelled.values()}
        for handle, job in cancelled.items():
            if job.state in WAITING and not job.taken:
                waiting.append(job)
            elif job.taken and job.batch_job is not None:
                inside = self._api.jobs(batch_job_id=job.batch_job, state=IN_LAUNCHER)
                others = [r for r in inside if r["id"] not in unwanted and (r["session_id"] or r["state"] == "RUNNING")]
                if others:
                    self._books.note(
                        handle,
                        f"cancelled, but {len(others)} other jobs run in its batch job {job.batch_job}: its ranks "
                        "stop by themselves when they next look at the store",
                    )
                else:
                    self._api.end_batch_job(job.batch_job)
                    self._books.note(handle, f"cancelled: batch job {job.batch_job} is being ended")
        self._drop(waiting, "cancelled", "cancelled before it ran")

    def _drop(self, jobs: Sequence[BalsamJob], reason: str, message: str) -> None:
        if jobs:
            data = {"reason": reason, "message": message}
            self._api.update_jobs([{"id": job.id, "state": "FAILED", "state_data": data} for job in jobs])

    def _publish(self, site: Record, jobs: Sequence[BalsamJob], batch_jobs: dict[int, BatchJob]) -> None:
        # Clocks differ: how long an agent has been silent is measured by ours from when its report changed.
        report = str(site["last_refresh"])
        if self._agent is None:
            silent = (datetime.now(UTC) - time_of(report)).total_seconds()
            self._agent = (report, time.monotonic() - max(0.0, silent))
        elif self._agent[0] != report:
            self._agent = (report, time.monotonic())
        view = View(
            jobs=jobs, batch_jobs={n: b for n, b in batch_jobs.items() if b.serves(self._name)},
            agent_silent_s=time.monotonic() - self._agent[1], site_path=str(site["path"]),
            pool_message=self._keeper.status.message,
        )  # fmt: skip
        with self._lock:
            self._view = view

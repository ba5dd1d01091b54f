"""Allocations by hand: nodes that a person asks for, sees and gives back (`hpn site nodes|request|release`).

They take any of our jobs at the site. The elastic pool counts on them and never gives them back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from happyneurons.errors import PreconditionError, UnavailableError, UserError
from happyneurons.executors.balsam.api import BalsamApi, Record
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.records import (
    AT_WORK,
    LIVE,
    WAITING,
    BatchJob,
    pool_tags,
    read_batch_job,
    read_job,
    with_jobs,
)
from happyneurons.hpc.folders import SiteFolder

WAIT_STEP_S = 2.0


class Nodes:
    """A site's batch jobs. `name`: the site's name in the sites file, as its jobs are tagged with."""

    def __init__(self, name: str, folder: SiteFolder, access: BalsamAccess, pool: PoolLimits) -> None:
        self.name, self._folder, self._site_name, self._pool = name, folder, access.site, pool
        self._api = BalsamApi(access)

    def list(self, *, ended: bool = False) -> list[BatchJob]:
        """Batch jobs that wait or run (with `ended`, all), oldest first. Raises UserError, UnavailableError."""
        site = self._api.site(self._site_name)
        states = {} if ended else {"state": list(LIVE)}
        found = {r["id"]: read_batch_job(r, site) for r in self._api.batch_jobs(site_id=site["id"], **states)}
        jobs = [read_job(r) for r in self._api.jobs(site_id=site["id"], state=[*WAITING, *AT_WORK])]
        return list(with_jobs(found, jobs).values())

    def waiting_jobs(self) -> int:
        """How many of our jobs wait for nodes."""
        return len(self._api.jobs(tags=[f"hpn_pool:{self.name}"], state=list(WAITING)))

    def request(
        self,
        nodes: int,
        *,
        queue: str | None = None,
        project: str | None = None,
        walltime_min: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> BatchJob:
        """Ask for nodes [queue, project, walltime: the sites file's, the site folder's].

        Raises UserError for what the site's rules forbid, UnavailableError if the server is away.
        """
        site = self._api.site(self._site_name)
        request = batch_job_request(
            self._folder, self._pool, site, nodes=nodes, queue=queue, project=project, walltime_min=walltime_min,
            options=options or {}, filter_tags=pool_tags(self.name, by_hand=True),
        )  # fmt: skip
        return read_batch_job(self._api.create_batch_job(request), site)

    def get(self, number: int) -> BatchJob:
        """One batch job of this site. Raises UserError if there is none of that number."""
        for batch_job in self.list(ended=True):
            if batch_job.id == number:
                return batch_job
        raise UserError(f"site {self.name} has no batch job {number}; `hpn site nodes {self.name}` lists them")

    def wait(self, number: int, timeout_s: float, seen: Callable[[BatchJob], None] = lambda _: None) -> BatchJob:
        """Until it runs. `seen` is told what it looks like, again and again.

        Raises PreconditionError if it ends instead, UnavailableError if that takes longer.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            batch_job = self.get(number)
            seen(batch_job)
            if batch_job.state == "running":
                return batch_job
            if not batch_job.live:
                raise PreconditionError(f"batch job {number}: {batch_job.state} {batch_job.message}".rstrip())
            if time.monotonic() > deadline:
                raise UnavailableError(f"batch job {number} is still {batch_job.state} after {timeout_s:g} s")
            time.sleep(min(WAIT_STEP_S, timeout_s))

    def release(self, number: int, *, force: bool = False) -> BatchJob:
        """Give nodes back. Jobs that run in them would be interrupted: PreconditionError unless `force`."""
        batch_job = self.get(number)
        if not batch_job.live or batch_job.state == "pending_deletion":
            return batch_job
        if batch_job.jobs and not force:
            raise PreconditionError(
                f"batch job {number} runs {len(batch_job.jobs)} jobs; wait for them, or interrupt them with --force "
                "(they are tried again)"
            )
        self._api.end_batch_job(number)
        return self.get(number)

    def close(self) -> None:
        self._api.close()


def batch_job_request(
    folder: SiteFolder,
    pool: PoolLimits,
    site: Record,
    *,
    nodes: int,
    queue: str | None,
    project: str | None,
    walltime_min: int | None,
    options: Mapping[str, str],
    filter_tags: Mapping[str, str],
) -> dict[str, Any]:
    """What the server is asked for, checked against the rules of the queue. Raises UserError."""
    facts = folder.facts
    queue = queue or pool.queue or facts.default_queue
    rules = facts.queues.get(queue)
    if rules is None:
        raise UserError(f"site folder {folder.name} has no queue {queue!r}; it has {', '.join(sorted(facts.queues))}")
    longest = rules.walltime_limit_min(nodes)
    walltime_min = walltime_min or min(pool.walltime_min, longest)
    if not rules.min_nodes <= nodes <= rules.max_nodes:
        raise UserError(f"queue {queue} gives {rules.min_nodes} to {rules.max_nodes} nodes; asked for {nodes}")
    if not 1 <= walltime_min <= longest:
        raise UserError(f"queue {queue} gives {nodes} nodes for at most {longest} min; asked for {walltime_min}")
    return {
        "site_id": site["id"], "num_nodes": nodes, "wall_time_min": walltime_min, "job_mode": "mpi", "queue": queue,
        "project": project or pool.project or _only_project(folder, site),
        "optional_params": {**facts.options, **pool.options, **options}, "filter_tags": dict(filter_tags),
    }  # fmt: skip


def _only_project(folder: SiteFolder, site: Record) -> str:
    """Balsam wants a project always; where the site does not, its first one will do."""
    allowed = site.get("allowed_projects") or []
    if folder.facts.project == "required" or not allowed:
        known = ", ".join(allowed) or "none yet"
        raise UserError(f"site folder {folder.name}: a project is required (Balsam's site knows: {known})")
    return str(allowed[0])

"""Why a job waits at a Balsam site: one line for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from happyneurons.executors.balsam.pool import carries
from happyneurons.executors.balsam.records import SITE_PREPARES, WAITING, BalsamJob, BatchJob

STUCK_S = 60.0
AGENT_SILENT_S = 180.0
"""An agent reports every minute, if it is not told otherwise."""


@dataclass(frozen=True)
class View:
    """What was seen at the last look at the server."""

    jobs: Sequence[BalsamJob] = ()
    """Ours that are not over, by id."""
    batch_jobs: Mapping[int, BatchJob] = field(default_factory=dict)
    """Those not over that may take our jobs."""
    agent_silent_s: float = 0.0
    site_path: str = ""
    pool_message: str = ""
    """Why no more nodes are asked for."""


def explain_job(job: BalsamJob, since_s: float, view: View) -> str:
    """Why it is where it is. `since_s`: how long it has been seen in this state."""
    silent = view.agent_silent_s > AGENT_SILENT_S
    if job.state in SITE_PREPARES:
        if silent:
            return f"prepared for running ({job.state}) by the site's agent, {_agent(view)}"
        if since_s > STUCK_S:
            return (
                f"stuck in {job.state} for {_span(since_s)} although the site's agent lives: see the newest "
                f"service log in {view.site_path}/log"
            )
        return f"being prepared by the site's agent ({job.state})"
    if job.state not in WAITING:
        return _where_it_runs(job, view)
    takers = [b for b in view.batch_jobs.values() if b.state != "pending_deletion"]
    fitting = [b for b in takers if carries(b, job)]
    running = [b for b in fitting if b.state == "running"]
    if running:
        return _in_line(job, running, view)
    if fitting:
        return _in_queue(fitting[0], silent, view)
    reasons = [_misfit(b, job) for b in takers]
    if view.pool_message:
        reasons.append(view.pool_message)
    if not reasons:
        return "no batch job is there yet; the pool is asking for one"
    return f"no batch job can take it: {'; '.join(reasons)}" + (f"; besides, {_agent(view)}" if silent else "")


def _where_it_runs(job: BalsamJob, view: View) -> str:
    batch_job = view.batch_jobs.get(job.batch_job or 0)
    if batch_job is None:
        return f"runs ({job.state})"
    if job.state != "RUNNING" and view.agent_silent_s > AGENT_SILENT_S:
        return f"its ranks ended; the rest is done by {_agent(view)}"
    return f"runs in {_name(batch_job)}, {batch_job.minutes_left or 0:.0f} of {batch_job.walltime_min} min left"


def _in_line(job: BalsamJob, running: Sequence[BatchJob], view: View) -> str:
    ahead = sum(1 for other in view.jobs if other.id < job.id and other.state in WAITING)
    used = sum(other.node_share for other in view.jobs if other.taken and other.batch_job in {b.id for b in running})
    nodes = sum(b.nodes for b in running)
    where = _name(running[0]) if len(running) == 1 else f"{len(running)} batch jobs"
    if nodes - used < job.node_share - 1e-6 or ahead:
        return f"{used:.3g} of {nodes} nodes of {where} are in use; {ahead} jobs ahead of this one"
    return f"{where} has room: its launcher takes the job within seconds"


def _in_queue(batch_job: BatchJob, silent: bool, view: View) -> str:
    if batch_job.state == "pending_submission":
        who = f"handed to the scheduler by the site's agent, {_agent(view)}" if silent else "about to be handed over"
        return f"waits for {_name(batch_job)}: {who}"
    since = "" if batch_job.queued_min is None else f" for {_span(60 * batch_job.queued_min)}"
    return f"waits for {_name(batch_job)}, which is in queue {batch_job.queue} of the scheduler{since}"


def _misfit(batch_job: BatchJob, job: BalsamJob) -> str:
    if job.nodes > batch_job.nodes:
        return f"{_name(batch_job)} has {batch_job.nodes} nodes, the job needs {job.nodes}"
    left = batch_job.minutes_left if batch_job.minutes_left is not None else batch_job.walltime_min
    need = f"the job needs {job.walltime_min} min" if job.walltime_min else "too little for any job"
    return f"{_name(batch_job)} has {left:.0f} min left, {need}"


def _name(batch_job: BatchJob) -> str:
    number = f" (scheduler: {batch_job.scheduler_id})" if batch_job.scheduler_id is not None else ""
    return f"batch job {batch_job.id}{number}"


def _agent(view: View) -> str:
    return (
        f"which has not reported for {_span(view.agent_silent_s)}: start it again "
        f"(`{view.site_path}/hpn-site start` on the site's login node)"
    )


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

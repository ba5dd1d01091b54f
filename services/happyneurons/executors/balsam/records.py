"""What Balsam says of jobs and batch jobs, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from happyneurons.errors import EXIT_OK, EXIT_TRY_AGAIN, EXIT_USAGE
from happyneurons.executors.base import ProcessReport, ProcessState

TAG_TOKEN, TAG_KEY, TAG_POOL, TAG_HAND = "hpn", "hpn_key", "hpn_pool", "hpn_hand"
"""Tags of our jobs. A batch job's filter tags must all be among them: the pool asks with `hpn_pool` alone,
`hpn site request` adds `hpn_hand`, which every job has too: so the pool knows its own from a person's."""

WAITING = ("CREATED", "AWAITING_PARENTS", "READY", "STAGED_IN", "PREPROCESSED", "RESTART_READY")
AT_WORK = ("RUNNING", "RUN_DONE", "POSTPROCESSED", "STAGED_OUT")
ENDED = ("RUN_ERROR", "RUN_TIMEOUT", "JOB_FINISHED", "FAILED")
ACTIVE = WAITING + AT_WORK
SITE_PREPARES = ("CREATED", "AWAITING_PARENTS", "READY", "STAGED_IN")
"""States in which the site's own service has the next step, not a batch job."""

LIVE = ("pending_submission", "queued", "running", "pending_deletion")
"""States of batch jobs that are not over."""
TAIL_CHARS = 2000


def pool_tags(name: str, *, by_hand: bool = False) -> dict[str, str]:
    """Filter tags of a batch job for the jobs of our site `name`."""
    return {TAG_POOL: name, TAG_HAND: "yes"} if by_hand else {TAG_POOL: name}


@dataclass(frozen=True)
class BalsamJob:
    """One attempt, as the server knows it."""

    id: int
    token: str
    state: str
    nodes: int
    packing: int
    walltime_min: int
    batch_job: int | None
    session: int | None
    updated: datetime

    @property
    def node_share(self) -> float:
        return self.nodes / max(1, self.packing)

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"

    @property
    def taken(self) -> bool:
        """A launcher has it, or may be about to start it."""
        return self.running or (self.session is not None and self.state in ("PREPROCESSED", "RESTART_READY"))


def read_job(record: Mapping[str, Any]) -> BalsamJob:
    return BalsamJob(
        id=record["id"], token=record["tags"].get(TAG_TOKEN, ""), state=record["state"],
        nodes=record["num_nodes"], packing=record["node_packing_count"], walltime_min=record["wall_time_min"],
        batch_job=record.get("batch_job_id"), session=record.get("session_id"), updated=time_of(record["last_update"]),
    )  # fmt: skip


@dataclass(frozen=True)
class BatchJob:
    """An allocation of nodes, asked for, waiting or running."""

    id: int
    state: str
    nodes: int
    queue: str
    project: str
    walltime_min: int
    filter_tags: Mapping[str, str]
    scheduler_id: int | None = None
    message: str = ""
    """The scheduler's or Balsam's complaint."""
    minutes_left: float | None = None
    """Of its walltime; None until it runs."""
    queued_min: float | None = None
    """Minutes since it was handed to the scheduler."""
    jobs: tuple[int, ...] = field(default=())
    """Ids of the jobs that run in it now."""

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def serves(self, pool: str) -> bool:
        """Whether it may take jobs of our site `pool`."""
        return self.filter_tags.items() <= pool_tags(pool, by_hand=True).items()

    def owned_by(self, pool: str) -> bool:
        """Whether the elastic pool of our site `pool` asked for it, in this life or an earlier one."""
        return dict(self.filter_tags) == pool_tags(pool)


def read_batch_job(record: Mapping[str, Any], site: Mapping[str, Any]) -> BatchJob:
    """A batch job, with what the site last saw of it in the scheduler's queue."""
    info = record.get("status_info") or {}
    seen = (site.get("queued_jobs") or {}).get(str(record.get("scheduler_id")), {})
    left = seen.get("time_remaining_min") if record["state"] == "running" else None
    if left is None and record["state"] == "running":
        start = record.get("start_time")
        gone = (now_utc() - time_of(start)).total_seconds() / 60 if start else 0.0
        left = max(0.0, record["wall_time_min"] - gone)
    submitted = info.get("submit_time")
    queued = (now_utc() - time_of(submitted)).total_seconds() / 60 if submitted else None
    return BatchJob(
        id=record["id"], state=record["state"], nodes=record["num_nodes"], queue=record["queue"],
        project=record["project"], walltime_min=record["wall_time_min"], filter_tags=record["filter_tags"] or {},
        scheduler_id=record.get("scheduler_id"), message=" ".join(str(info.get("error", "")).split())[:TAIL_CHARS],
        minutes_left=left, queued_min=queued,
    )  # fmt: skip


def with_jobs(batch_jobs: Mapping[int, BatchJob], jobs: list[BalsamJob]) -> dict[int, BatchJob]:
    """Batch jobs, each with the jobs that a launcher has taken into it."""
    inside: dict[int, list[int]] = {}
    for job in jobs:
        if job.batch_job is not None and job.taken:
            inside.setdefault(job.batch_job, []).append(job.id)
    return {n: replace(b, jobs=tuple(inside.get(n, ()))) for n, b in batch_jobs.items()}


def report_of(state: str, data: Mapping[str, Any]) -> ProcessReport:
    """A job's state as the executor interface has it. `data`: of the event that brought it there."""
    if state in AT_WORK:
        return ProcessReport(ProcessState.RUNNING)
    if state == "JOB_FINISHED":
        return ProcessReport(ProcessState.EXITED, EXIT_OK)
    if state not in ENDED:
        return ProcessReport(ProcessState.QUEUED)
    tail = "\n".join(str(data[name]) for name in ("message", "exception", "error") if data.get(name))
    code: int | None = None
    if isinstance(data.get("returncode"), int | float | str):
        code = int(data["returncode"])
    if data.get("reason") == "parameters":  # refused by the app before anything ran
        code = EXIT_USAGE
    if state == "RUN_TIMEOUT" or data.get("reason") == "timeout":
        code = EXIT_TRY_AGAIN
        tail = tail or "its batch job ended before it"
    return ProcessReport(ProcessState.EXITED, code, tail[-TAIL_CHARS:])


def now_utc() -> datetime:
    return datetime.now(UTC)


def time_of(text: str) -> datetime:
    """A time as Balsam writes it: UTC, mostly without saying so."""
    time = datetime.fromisoformat(text.strip().replace(" ", "T", 1))
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)

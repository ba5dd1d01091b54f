"""What an executor is.

An executor only carries processes: whether a job succeeded is written in the store by the job
itself (:mod:`happyneurons.jobs.attempts`), and read there. So an executor may lose its memory, and
the worst that follows is an attempt that finds its work done already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from happyneurons.jobs.spec import Resources


class ProcessState(StrEnum):
    """Where the processes of a submission are."""

    QUEUED = "queued"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"  # the executor forgot or cannot reach it: judge by the heartbeat


@dataclass(frozen=True)
class Submission:
    """One attempt to be carried out."""

    job_uri: str
    stage: str
    resources: Resources
    takeover: bool = False
    retry_quarantined: bool = False
    token: str = ""
    """Names this submission and no other, the same again after a restart of whoever submits: an executor
    whose answer got lost can find what it queued instead of queueing it twice. Empty: not known."""


@dataclass(frozen=True)
class ProcessReport:
    state: ProcessState
    exit_code: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Capacity:
    """What jobs may use together; zeros where only the site's scheduler knows."""

    cores: int = 0
    memory_gb: float = 0.0
    problem: str = ""
    """Why the site does not answer; empty if it does."""


@dataclass(frozen=True)
class PoolStatus:
    """Nodes that may take our jobs, whoever asked for them; counters count since the start of this process."""

    nodes_queued: int = 0
    nodes_running: int = 0
    batch_jobs_queued: int = 0
    batch_jobs_running: int = 0
    jobs_waiting: int = 0
    jobs_running: int = 0
    node_seconds: float = 0.0
    """Nodes × seconds that batch jobs ran."""
    requested: int = 0
    given_back: int = 0
    refused: int = 0
    """Batch jobs that the scheduler refused, or that ended without having run anything although work waited."""
    message: str = ""
    """Why no more nodes are asked for although work waits, or the last refusal."""


class Executor(Protocol):
    """Carries attempts to a place. Thread-safe; no call blocks for longer than its own timeout."""

    kind: str
    image_digest: str
    """Identity of the image that jobs run in here, part of their keys; empty where there is none."""

    def refuse(self, stage: str, resources: Resources) -> str | None:
        """Why such a job could never run here (then it is not submitted), or None."""

    def resources(self, stage: str, asked: Resources) -> Resources:
        """What a job of this stage gets here: the site may fill in what the pipeline leaves open."""

    def submit(self, submission: Submission) -> str:
        """Queue an attempt; returns a handle. May be called again for the same job.

        Raises UserError for what will never work (it is not tried again), UnavailableError while the
        site cannot be reached (it is tried again for as long as it takes), other HappyErrors for the rest.
        """

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        """State of each handle; UNKNOWN for handles it does not know."""

    def cancel(self, handle: str) -> None:
        """Drop it from the queue, or stop its processes by whatever means there are; harmless when it is over."""

    def explain(self, handle: str) -> str:
        """Why it is waiting, for a person."""

    def capacity(self) -> Capacity:
        """What there is, asked just now."""

    def pool_status(self) -> PoolStatus | None:
        """Nodes that were asked for from a batch system; None where nobody has to ask. Never blocks."""

    def lead(self, leads: bool) -> None:
        """Whether this process is the one that drives jobs. One that is not asks for nothing and gives nothing
        back by itself (nodes, say); an executor that was not told acts."""

    def close(self) -> None:
        """Let go of connections. Running attempts go on."""

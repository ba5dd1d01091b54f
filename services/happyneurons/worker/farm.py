"""The rank farm: where a job's tasks are carried out.

With MPI, `mpi4py.futures` hands tasks to whichever rank is free; rank 0 plans and keeps the
books. Without MPI, or with one rank, tasks run in this process. Both return futures, so that the
job's loop (:mod:`happyneurons.worker.run`) does not know the difference.
"""

from __future__ import annotations

import errno
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from happyneurons.errors import DrainedError, StoreError, TaskError, UserError
from happyneurons.jobs.spec import JobSpec
from happyneurons.jobs.stage import Round, Task
from happyneurons.store.documents import Store
from happyneurons.store.telemetry import TELEMETRY, Counts, changes
from happyneurons.worker.context import JobContext

INFRASTRUCTURE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM}


@dataclass(frozen=True)
class Outcome:
    """What became of one try of a task."""

    status: Literal["done", "failed", "user", "infrastructure"]
    data: Mapping[str, Any] = field(default_factory=dict)
    voxels: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rank: int = 0
    error: str = ""
    detail: str = ""
    peak_memory_bytes: int = 0
    """Most memory that the rank has had so far."""
    store: Counts = field(default_factory=dict)
    """What the rank asked of its stores since its last outcome."""


@dataclass(frozen=True)
class JobOnRank:
    """What every rank has to know to work on a job; broadcast by rank 0."""

    store_uri: str
    spec: JobSpec
    threads: int
    attempt: int | None = None
    """Number of the attempt; None: a task is repeated outside of any."""


class RankState:
    """A rank's share of the job: context and rounds."""

    def __init__(self, job: JobOnRank, rank: int) -> None:
        from happyneurons.stages import load_stage

        self.rank = rank
        stage = load_stage(job.spec.stage)
        self.context = JobContext(Store(job.store_uri), job.spec, stage, job.threads, job.attempt)
        self.stage = stage()
        self._rounds: list[Round] | None = None
        self._told: Counts = TELEMETRY.snapshot()

    @property
    def rounds(self) -> list[Round]:
        if self._rounds is None:  # after `check`, which may refuse what `rounds` relies on
            self._rounds = list(self.stage.rounds(self.context))
        return self._rounds

    def store_calls(self) -> Counts:
        """What this rank asked of its stores since this was called before."""
        now = TELEMETRY.snapshot()
        since, self._told = changes(self._told, now), now
        return since


def peak_memory_bytes() -> int:
    """Most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_RANK: RankState | None = None


def enter_job(job: JobOnRank, rank: int) -> RankState:
    """Make this process a rank of the job. mpi4py.futures gives tasks no other way to find it."""
    global _RANK
    _RANK = RankState(job, rank)
    return _RANK


def current_rank() -> RankState:
    assert _RANK is not None, "not inside a job"
    return _RANK


def leave_job() -> None:
    global _RANK
    if _RANK is not None:
        _RANK.context.close()
    _RANK = None


def execute(round_index: int, task: Task) -> Outcome:
    """Do one task in this rank; never raises for the task's own failure."""
    state, start = current_rank(), time.perf_counter()

    def outcome(status: Literal["failed", "user", "infrastructure"], error: BaseException) -> Outcome:
        return Outcome(
            status, seconds=time.perf_counter() - start, rank=state.rank,
            error=f"{type(error).__name__}: {error}" if status != "user" else str(error),
            detail="" if isinstance(error, (TaskError, UserError)) else traceback.format_exc(limit=-6),
            peak_memory_bytes=peak_memory_bytes(), store=state.store_calls(),
        )  # fmt: skip

    try:
        result = state.rounds[round_index].run(task, state.context)
    except UserError as error:
        return outcome("user", error)
    except (StoreError, DrainedError, MemoryError) as error:
        return outcome("infrastructure", error)
    except OSError as error:
        return outcome("infrastructure" if error.errno in INFRASTRUCTURE_ERRNO else "failed", error)
    except Exception as error:  # noqa: BLE001 - whatever a task raises must not end the others
        return outcome("failed", error)
    return Outcome(
        "done", dict(result.data), int(result.voxels), int(result.bytes), time.perf_counter() - start, state.rank,
        peak_memory_bytes=peak_memory_bytes(), store=state.store_calls(),
    )  # fmt: skip


class Farm(Protocol):
    """Carries out calls; at most about `window` should be under way."""

    workers: int
    window: int

    def submit(self, function: Callable[..., Outcome], *args: Any) -> Future[Outcome]: ...


class SerialFarm:
    """Everything in this process, one after the other."""

    workers = 1
    window = 1

    def submit(self, function: Callable[..., Outcome], *args: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(function(*args))
        return future


class MPIFarm:
    """All ranks but rank 0, by mpi4py.futures."""

    def __init__(self, executor: Any, workers: int) -> None:
        self._executor, self.workers = executor, workers
        # A few more than ranks, so that nobody waits for the next task.
        self.window = workers + max(1, workers // 4)

    def submit(self, function: Callable[..., Outcome], *args: Any) -> Future[Outcome]:
        future: Future[Outcome] = self._executor.submit(function, *args)
        return future


def abort_all(code: int) -> None:
    """End this process and, under MPI, all ranks, without waiting for tasks at work."""
    import os
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Abort(code)
    os._exit(code)


@contextmanager
def mpi_farm(make_job: Callable[[], JobOnRank | None]) -> Iterator[tuple[Farm, JobOnRank] | None]:
    """Farm over MPI.COMM_WORLD, or in this process where there is one rank.

    `make_job` is called on rank 0 only; its result is broadcast. Yields None on the other ranks
    after they are done working, and everywhere if `make_job` returned None (nothing to do).
    """
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    comm = MPI.COMM_WORLD
    if comm.rank != 0:
        # The coordinator decides when to drain; a rank that died of the signal would abort all.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = None
    try:
        job = make_job() if comm.rank == 0 else None
    finally:
        job = comm.bcast(job, root=0)  # also when rank 0 refuses the job: the others go home
    if job is None:
        yield None
        return
    enter_job(job, comm.rank)
    try:
        if comm.size == 1:
            yield SerialFarm(), job
            return
        with MPICommExecutor(comm, root=0) as executor:
            yield None if executor is None else (MPIFarm(executor, comm.size - 1), job)
    finally:
        leave_job()

"""Starting a job's MPI processes on this machine, and knowing what became of them.

Processes outlive whoever started them: a restarted orchestrator finds the attempts of its
predecessor by their heartbeat in the store, not by process numbers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from happyneurons.errors import EXIT_FAILED, EXIT_USAGE, HappyError, UserError
from happyneurons.jobs.attempts import attempt_folder, attempt_numbers
from happyneurons.jobs.spec import Resources, parse_job_uri

OUTPUT_TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Launch:
    """One attempt to start."""

    job_uri: str
    resources: Resources = field(default_factory=Resources)
    takeover: bool = False
    retry_quarantined: bool = False


def mpiexec() -> str:
    """The launcher that belongs to this environment's MPI.

    Another MPI's mpiexec starts N lonely ranks or fails, so the environment's own comes first;
    HPN_MPIEXEC overrides (a site's launcher).
    """
    own = Path(sys.executable).parent / "mpiexec"
    found = os.environ.get("HPN_MPIEXEC") or (str(own) if own.exists() else shutil.which("mpiexec"))
    if not found:
        raise UserError("no mpiexec found: install the package 'mpich', or set HPN_MPIEXEC")
    return found


def stage_arguments(launch: Launch) -> list[str]:
    """What `hpn-stage` is given for an attempt."""
    resources = launch.resources
    arguments = ["run", launch.job_uri, "--threads", str(resources.threads_per_rank)]
    if launch.takeover:
        arguments.append("--takeover")
    if launch.retry_quarantined:
        arguments.append("--retry-quarantined")
    if resources.walltime_min is not None:
        arguments += ["--walltime-s", str(resources.walltime_min * 60)]
    return arguments


def stage_command(launch: Launch) -> list[str]:
    """Command line of an attempt. With two or more ranks, one more coordinates (it mostly sleeps)."""
    resources = launch.resources
    program = [sys.executable, "-m", "mpi4py", "-m", "happyneurons.worker.main", *stage_arguments(launch)]
    if resources.ranks == 1:
        return program
    return [mpiexec(), "-n", str(resources.ranks + 1), *program]


def thread_variables(resources: Resources) -> dict[str, str]:
    """Libraries must not take more threads than the job was given."""
    threads = str(resources.threads_per_rank)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {**dict.fromkeys(names, threads), "TF_NUM_INTEROP_THREADS": "1"}


def stage_environment(resources: Resources) -> dict[str, str]:
    """Environment of ranks."""
    environment = {**os.environ, **thread_variables(resources)}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return environment


def start(launch: Launch, output: Path) -> subprocess.Popen[bytes]:
    """Start an attempt in a session of its own, output into a file."""
    with output.open("wb") as sink:
        return subprocess.Popen(
            stage_command(launch), env=stage_environment(launch.resources), stdin=subprocess.DEVNULL,
            stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Room:
    """What a pool has left."""

    cores: int
    memory_gb: float
    waiting: int
    """Jobs in its queue."""

    def fits(self, resources: Resources) -> bool:
        """Whether a job would start at once."""
        return not self.waiting and resources.cores <= self.cores and (resources.memory_gb or 0) <= self.memory_gb


class LocalPool:
    """Starts attempts as cores and memory allow; the others wait in order. Thread-safe.

    First come, first served: a large job is never overtaken, so it cannot starve.
    """

    def __init__(self, cores: int | None = None, memory_gb: float | None = None, folder: Path | None = None) -> None:
        self.cores = cores or os.cpu_count() or 1
        self.memory_gb = memory_gb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        self._folder = folder or Path(os.environ.get("TMPDIR", "/tmp")) / f"happyneurons-{os.getuid()}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._waiting: OrderedDict[str, Launch] = OrderedDict()
        self._running: dict[str, tuple[Launch, subprocess.Popen[bytes]]] = {}
        self._exited: dict[str, int | None] = {}
        self._lock = threading.RLock()

    def refuse(self, resources: Resources) -> str | None:
        """Why a job can never run here, or None."""
        if resources.cores > self.cores:
            return f"needs {resources.cores} cores (ranks × threads_per_rank); this machine gives {self.cores}"
        if (resources.memory_gb or 0) > self.memory_gb:
            return f"needs {resources.memory_gb:g} GB of memory; this machine gives {self.memory_gb:.3g} GB"
        if resources.gpus_per_rank:
            return "needs GPUs; this machine was given none"
        return None

    def submit(self, token: str, launch: Launch) -> None:
        """Queue an attempt under the caller's token."""
        problem = self.refuse(launch.resources)
        if problem:
            raise UserError(f"job {launch.job_uri}: {problem}")
        with self._lock:
            self._exited.pop(token, None)
            self._waiting[token] = launch
            self._admit()

    def poll(self) -> dict[str, tuple[Literal["waiting", "running", "exited"], int | None]]:
        """token → (state, exit code once exited; None if it was dropped before it started)."""
        with self._lock:
            self._reap()
            self._admit()
            states: dict[str, tuple[Literal["waiting", "running", "exited"], int | None]] = {}
            states |= dict.fromkeys(self._waiting, ("waiting", None))
            states |= dict.fromkeys(self._running, ("running", None))
            states |= {token: ("exited", code) for token, code in self._exited.items()}
            return states

    def forget(self, token: str) -> None:
        """Drop an exited attempt from the books."""
        with self._lock:
            self._exited.pop(token, None)

    def terminate(self, token: str) -> None:
        """SIGTERM (the attempt drains), or drop it from the queue."""
        with self._lock:
            if self._waiting.pop(token, None) is not None:
                self._exited[token] = None
            elif token in self._running:
                self._running[token][1].terminate()

    def room(self) -> Room:
        """What is left now."""
        with self._lock:
            running = [launch.resources for launch, _ in self._running.values()]
            cores = self.cores - sum(r.cores for r in running)
            return Room(cores, self.memory_gb - sum(r.memory_gb or 0 for r in running), len(self._waiting))

    def explain(self, token: str) -> str:
        """Why an attempt waits."""
        with self._lock:
            if token not in self._waiting:
                return "it runs" if token in self._running else "it is not queued here"
            resources = self._waiting[token].resources
            ahead = list(self._waiting).index(token)
            free = self.cores - sum(launch.resources.cores for launch, _ in self._running.values())
            return f"waits for {resources.cores} of {self.cores} cores ({free} free, {ahead} jobs ahead)"

    def _reap(self) -> None:
        for token, (launch, process) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[token]
            self._exited[token] = code
            self._keep_output(token, launch, code)

    def _keep_output(self, token: str, launch: Launch, code: int | None) -> None:
        """Crashes speak on stderr only: keep its tail beside the attempt."""
        output = self._output(token)
        if code not in (0, 75) and output.exists():
            with contextlib.suppress(HappyError):
                store, key = parse_job_uri(launch.job_uri)
                numbers = attempt_numbers(store, key)
                with output.open("rb") as file:
                    file.seek(max(0, output.stat().st_size - OUTPUT_TAIL_BYTES))
                    store.put(f"{attempt_folder(key, numbers[-1] if numbers else 0)}/output.txt", file.read())
        output.unlink(missing_ok=True)

    def _admit(self) -> None:
        for token, launch in list(self._waiting.items()):
            cores = sum(running.resources.cores for running, _ in self._running.values())
            memory = sum(running.resources.memory_gb or 0 for running, _ in self._running.values())
            if cores + launch.resources.cores > self.cores:
                break
            if memory + (launch.resources.memory_gb or 0) > self.memory_gb:
                break
            del self._waiting[token]
            try:
                self._running[token] = (launch, start(launch, self._output(token)))
            except (HappyError, OSError) as error:  # no mpiexec, no more processes: this attempt's end, not the pool's
                self._output(token).write_text(f"its processes could not be started: {error}\n")
                self._exited[token] = EXIT_USAGE if isinstance(error, UserError) else EXIT_FAILED
                self._keep_output(token, launch, self._exited[token])

    def _output(self, token: str) -> Path:
        return self._folder / f"{token.replace('/', '_')}.out"

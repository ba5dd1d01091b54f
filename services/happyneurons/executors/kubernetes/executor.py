"""Executor `kubernetes`: each attempt is a Kubernetes Job in one namespace.

Jobs are made suspended. The orchestrator that leads starts them in the order of their submission as the site's
cores and memory allow, by lifting the suspension; a large one is not overtaken. All of that state is the API
server's: a restarted orchestrator finds it there. A Job that is cancelled is suspended again, at which Kubernetes
ends its pod: the attempt drains. Jobs are never restarted by Kubernetes, as the orchestrator decides about that.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping

from happyneurons.errors import EXIT_OK, EXIT_TRY_AGAIN, HappyError, NotFoundError, UnavailableError, UserError
from happyneurons.executors.base import Capacity, ProcessReport, ProcessState, Submission
from happyneurons.executors.kubernetes.cluster import Cluster
from happyneurons.executors.kubernetes.config import KubernetesAccess
from happyneurons.executors.kubernetes.manifest import (
    CANCELLED,
    LABEL_SITE,
    gpus,
    job_manifest,
    job_name,
    label,
    load_template,
)
from happyneurons.executors.kubernetes.records import KubernetesJob, read_jobs
from happyneurons.jobs.attempts import attempt_folder, attempt_numbers
from happyneurons.jobs.spec import Resources, parse_job_uri

log = logging.getLogger("happyneurons.executors.kubernetes")

LOOK_S = 1.0
"""The API is asked at most so often, however many jobs are polled."""

OUTPUT_TAIL_BYTES = 65_536


class KubernetesExecutor:
    """Jobs of one site. Handles are names of Jobs."""

    kind = "kubernetes"
    image_digest = ""

    def __init__(self, name: str, access: KubernetesAccess, cores: int, memory_gb: float) -> None:
        """cores, memory_gb: what jobs may use together. Raises UserError."""
        self.name, self.access, self.cores, self.memory_gb = name, access, cores, memory_gb
        self._template = load_template(access.template)
        self._cluster = Cluster(access)
        self._selector = f"{LABEL_SITE}={label(name)}"
        self._jobs: dict[str, KubernetesJob] = {}
        self._looked: float | None = None
        self._problem = ""
        self._kept: set[str] = set()
        self._acts = True
        self._lock = threading.RLock()

    def refuse(self, stage: str, resources: Resources) -> str | None:
        """By the site's limits; whether there is an image of the stage, only the cluster finds out."""
        most = min(self.cores, self.access.node_cores or self.cores)
        if resources.cores > most:
            return f"needs {resources.cores} cores (ranks × threads_per_rank); site {self.name} gives a job {most}"
        if (resources.memory_gb or 0) > self.memory_gb:
            return f"needs {resources.memory_gb:g} GB of memory; site {self.name} gives {self.memory_gb:.3g} GB"
        if gpus(resources) and not self.access.gpu_resource:
            return f"needs GPUs; site {self.name} was given none (gpu_resource)"
        return None

    def resources(self, stage: str, asked: Resources) -> Resources:
        return asked

    def submit(self, submission: Submission) -> str:
        problem = self.refuse(submission.stage, submission.resources)
        if problem:
            raise UserError(f"job {submission.job_uri}: {problem}")
        name = job_name(submission, self.name)
        manifest = job_manifest(name, self.name, submission, self.access, self._template)
        with self._lock:
            if self._cluster.create_job(manifest):
                log.info("site %s: Job %s for %s", self.name, name, submission.job_uri)
            self._look(fresh=True)
        return name

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        reports = {}
        wanted = list(handles)
        with self._lock:
            if wanted:
                with contextlib.suppress(HappyError):
                    self._look()
            for handle in wanted:
                reports[handle] = self._report(handle)
        return reports

    def cancel(self, handle: str) -> None:
        """Suspend it: Kubernetes ends its pod, which drains. What had not begun does not begin."""
        patch = {"metadata": {"annotations": {CANCELLED: f"{time.time():.0f}"}}, "spec": {"suspend": True}}
        with self._lock:
            self._look(fresh=True)
            job = self._jobs.get(handle)
            if job is None or job.ended or job.cancelled:
                return
            with contextlib.suppress(NotFoundError):
                self._cluster.patch_job(handle, patch)
            self._look(fresh=True)

    def explain(self, handle: str) -> str:
        with self._lock:
            try:
                self._look()
            except UnavailableError as error:
                return str(error)
            job = self._jobs.get(handle)
            if job is None:
                return f"site {self.name} has no Job of that name"
            report = job.report()
            if report.state is ProcessState.EXITED:
                return f"ended with exit code {report.exit_code}" + (f": {report.detail}" if report.detail else "")
            if job.waits:
                ahead = sum(other.waits and other.turn < job.turn for other in self._jobs.values())
                free = self.cores - sum(other.cores for other in self._jobs.values() if other.holds)
                return f"waits for {job.cores} of {self.cores} cores ({free} free, {ahead} jobs ahead)"
            return job.stands()

    def capacity(self) -> Capacity:
        with self._lock:
            try:
                self._look(fresh=True)
            except HappyError as error:
                return Capacity(problem=str(error))
        return Capacity(self.cores, self.memory_gb)

    def pool_status(self) -> None:
        return None

    def lead(self, leads: bool) -> None:
        self._acts = leads

    def close(self) -> None:
        self._cluster.close()

    # --- looking ---------------------------------------------------------------------------------

    def _look(self, *, fresh: bool = False) -> None:
        """Take over what the API says, and start whose turn it is. Raises UnavailableError."""
        now = time.monotonic()
        if not fresh and self._looked is not None and now - self._looked < LOOK_S:
            if self._problem:
                raise UnavailableError(self._problem)
            return
        self._looked = now
        try:
            self._jobs = read_jobs(self._cluster.jobs(self._selector), self._cluster.pods(self._selector))
            self._problem = ""
            if self._acts:
                self._admit()
                self._sweep()
        except HappyError as error:
            self._problem = str(error)
            raise

    def _admit(self) -> None:
        """Lift the suspension of those whose turn it is. First come, first served."""
        held = [job for job in self._jobs.values() if job.holds]
        cores, memory_gb = sum(job.cores for job in held), sum(job.memory_gb for job in held)
        for job in sorted((job for job in self._jobs.values() if job.waits), key=lambda job: job.turn):
            cores, memory_gb = cores + job.cores, memory_gb + job.memory_gb
            if cores > self.cores or memory_gb > self.memory_gb:
                return
            with contextlib.suppress(NotFoundError):
                self._cluster.patch_job(job.name, {"spec": {"suspend": False}})
            self._looked = None  # it is another one now

    def _sweep(self) -> None:
        """Cancelled Jobs are suspended, not over: Kubernetes would keep them for ever."""
        for job in self._jobs.values():
            if job.cancelled and not job.alive and time.time() - job.cancelled > self.access.keep_finished_s:
                self._cluster.delete_job(job.name)

    def _report(self, handle: str) -> ProcessReport:
        job = self._jobs.get(handle)
        if job is None:
            return ProcessReport(ProcessState.UNKNOWN, detail=self._problem or f"site {self.name} has no such Job")
        report = job.report()
        if report.state is ProcessState.EXITED:
            self._keep_output(job, report)
        elif self._problem:
            return ProcessReport(report.state, report.exit_code, self._problem)
        return report

    def _keep_output(self, job: KubernetesJob, report: ProcessReport) -> None:
        """Crashes speak on stderr only: keep its tail beside the attempt, as the pod will be gone."""
        if job.name in self._kept or job.pod is None or report.exit_code in (EXIT_OK, EXIT_TRY_AGAIN):
            return
        with contextlib.suppress(HappyError):  # the store or the API is away: at the next poll
            text = self._cluster.log_tail(job.pod["metadata"]["name"], OUTPUT_TAIL_BYTES)
            store, key = parse_job_uri(job.uri)
            numbers = attempt_numbers(store, key)
            store.put(f"{attempt_folder(key, numbers[-1] if numbers else 0)}/output.txt", text.encode())
            self._kept.add(job.name)

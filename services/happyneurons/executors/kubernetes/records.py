"""What Jobs and their pods, as the API writes them, mean to us."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from happyneurons.errors import EXIT_OK, EXIT_TRY_AGAIN
from happyneurons.executors.base import ProcessReport, ProcessState
from happyneurons.executors.kubernetes.manifest import CANCELLED, CORES, JOB_URI, MEMORY_GB, SUBMITTED, Record

OWNER = ("batch.kubernetes.io/job-name", "job-name")


@dataclass(frozen=True)
class KubernetesJob:
    """A Job of ours with its pod."""

    name: str
    uri: str
    cores: int
    memory_gb: float
    turn: int
    cancelled: float
    """Seconds since 1970; 0: not."""
    suspended: bool
    alive: int
    """Pods that are not over. Those that are being ended, which may drain for a minute, are among them: the Job's
    status counts them apart (`active`, `terminating`)."""
    ended: str
    """Complete, Failed or Deleted; empty while it is not over."""
    message: str
    pod: Record | None

    @property
    def waits(self) -> bool:
        """For its turn."""
        return self.suspended and not self.ended and not self.cancelled

    @property
    def holds(self) -> bool:
        """Whether cores are, or will be, in use by it."""
        return not self.ended and (not self.suspended or self.alive > 0)

    def report(self) -> ProcessReport:
        """Where its processes are."""
        if self.ended == "Complete":
            return ProcessReport(ProcessState.EXITED, EXIT_OK)
        if self.ended:
            code, detail = _exit(self.pod)
            return ProcessReport(ProcessState.EXITED, EXIT_TRY_AGAIN if code is None else code, detail or self.message)
        if self.cancelled and not self.alive:
            return ProcessReport(ProcessState.EXITED, EXIT_TRY_AGAIN, "cancelled")
        if self.pod is not None and (self.pod.get("status") or {}).get("phase") == "Running":
            return ProcessReport(ProcessState.RUNNING)
        return ProcessReport(ProcessState.QUEUED)

    def stands(self) -> str:
        """What holds up its pod, or where it runs, for a person."""
        if self.pod is None:
            return "its pod is about to be made"
        status = self.pod.get("status") or {}
        if status.get("phase") == "Running":
            return f"it runs on node {(self.pod.get('spec') or {}).get('nodeName', '?')}"
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"its pod waits for a node: {condition.get('message') or condition.get('reason', '')}"
        for container in status.get("containerStatuses") or []:
            waiting = (container.get("state") or {}).get("waiting")
            if waiting:
                return f"its pod starts: {waiting.get('reason', '')} {waiting.get('message', '')}".strip()
        return f"its pod is {status.get('phase', 'new').lower()}"


def read_jobs(jobs: Iterable[Record], pods: Iterable[Record]) -> dict[str, KubernetesJob]:
    """Jobs by name, with the newest pod of each."""
    newest: dict[str, Record] = {}
    for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp"))):
        labels = pod["metadata"].get("labels") or {}
        name = next((labels[key] for key in OWNER if key in labels), "")
        newest[name] = pod
    return {job["metadata"]["name"]: _read_job(job, newest.get(job["metadata"]["name"])) for job in jobs}


def _read_job(job: Record, pod: Record | None) -> KubernetesJob:
    metadata, status = job["metadata"], job.get("status") or {}
    notes: Mapping[str, str] = metadata.get("annotations") or {}
    ended = message = ""
    for condition in status.get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            ended = condition["type"]
            message = ": ".join(t for t in (condition.get("reason"), condition.get("message")) if t)
    if not ended and metadata.get("deletionTimestamp"):
        ended, message = "Deleted", "its Job was deleted"
    return KubernetesJob(
        name=metadata["name"], uri=notes.get(JOB_URI, ""), cores=int(notes.get(CORES, 1)),
        memory_gb=float(notes.get(MEMORY_GB, 0)), turn=int(notes.get(SUBMITTED, 0)),
        cancelled=float(notes.get(CANCELLED, 0)), suspended=bool(job["spec"].get("suspend")),
        alive=int(status.get("active") or 0) + int(status.get("terminating") or 0),
        ended=ended, message=message, pod=pod,
    )  # fmt: skip


def _exit(pod: Record | None) -> tuple[int | None, str]:
    """Exit code and reason of a pod that is over; (None, reason) where its containers never ended."""
    status = {} if pod is None else pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        end = (container.get("state") or {}).get("terminated")
        if end:
            reason = end.get("reason", "")
            return int(end["exitCode"]), "out of memory (OOMKilled)" if reason == "OOMKilled" else end.get(
                "message", ""
            )
    return None, ": ".join(t for t in (status.get("reason"), status.get("message")) if t)

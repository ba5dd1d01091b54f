"""A stand-in for a Kubernetes API server: an HTTP server with the calls for Jobs and pods that our executor makes.

A real one (kube-apiserver, etcd, kubelet) takes longer to build than all tests together. This one keeps what it is
given in memory, checks it against Kubernetes' own schemas (kubernetes-validate), refuses what the real one refuses
there (names, templates that change), and does what the Job controller and a kubelet do: it starts a pod for a Job
that is not suspended, carries out its command as processes of this machine, ends them when the Job is suspended or
deleted, and writes conditions and exit codes as they do. It has no scheduler, no quotas, no watches, and no images:
every image is this environment, with `hpn-stage` as its entry point.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

from .http_standin import Answer, HttpServer

VERSION = "1.37"
JOBS = re.compile(r"/apis/batch/v1/namespaces/(?P<ns>[^/]+)/jobs(?:/(?P<name>[^/]+))?$")
PODS = re.compile(r"/api/v1/namespaces/(?P<ns>[^/]+)/pods(?:/(?P<name>[^/]+)/log)?$")
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")
BIN = Path(sys.executable).parent
OVER = "Job has reached the specified backoff limit"
Record = dict[str, Any]


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class StandIn:
    """The objects, the processes, and the faults. `folder`: where pods print to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, "good"
        self.jobs: dict[str, Record] = {}
        self.pods: dict[str, Record] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        """Status to answer with instead of doing what is asked."""
        self.lose_answers = False
        """Carry out what is asked, and hang up."""
        self.schedules = True
        """False: no node has room for a pod."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._http = HttpServer(self._answer)
        self.url = self._http.url
        self._controller = threading.Thread(target=self._control, daemon=True)
        self._controller.start()

    def close(self) -> None:
        self._closed.set()
        self._controller.join()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._http.close()

    def _answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        try:
            document = self.handle(method, target, headers, body)
            status = 201 if method == "POST" else 200
        except _Refused as error:
            status = error.status
            document = {"kind": "Status", "status": "Failure", "message": error.message, "code": status}
        return None if self.lose_answers else (status, document)

    def kubeconfig(self, path: Path) -> Path:
        """A file by which clients find it, as user `tester` in the namespace `lab`."""
        named = {"cluster": {"server": self.url}, "user": {"token": self.token}}
        context = {"cluster": "standin", "user": "tester", "namespace": "lab"}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "standin",
            "clusters": [{"name": "standin", "cluster": named["cluster"]}],
            "users": [{"name": "tester", "user": named["user"]}],
            "contexts": [{"name": "standin", "context": context}],
        }  # fmt: skip
        path.write_text(json.dumps(document))
        return path

    def kill_pod(self, job: str) -> None:
        """What becomes of a pod whose node is lost: nobody knows an exit code."""
        with self._lock:
            name = self._pod_of(job)
            process = self._processes.pop(name)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.pods.pop(name)
            self._finish(self.jobs[job], "Failed", "BackoffLimitExceeded", OVER)

    # --- the API -----------------------------------------------------------------------------------

    def handle(self, method: str, target: str, headers: Any, body: bytes) -> Any:
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.requests.append((method, url.path))
        status = self.fault(method, url.path)
        if status is not None:
            raise _Refused(status, f"as told: {status}")
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise _Refused(401, "Unauthorized")
        with self._lock:
            if match := JOBS.match(url.path):
                return self._handle_jobs(method, match["ns"], match["name"], query, headers, body)
            if match := PODS.match(url.path):
                if match["name"]:
                    return self._log(match["name"], query)
                return self._list(self.pods, "PodList", match["ns"], query)
        raise _Refused(404, "the server could not find the requested resource")

    def _handle_jobs(
        self, method: str, namespace: str, name: str | None, query: dict[str, str], headers: Any, body: bytes
    ) -> Any:
        if method == "POST":
            return self._create(namespace, json.loads(body))
        if name is None:
            return self._list(self.jobs, "JobList", namespace, query)
        if name not in self.jobs:
            raise _Refused(404, f'jobs.batch "{name}" not found')
        if method == "PATCH":
            kind = headers.get("Content-Type", "")
            if kind not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
                raise _Refused(415, f"the body of the request was in an unknown format: {kind}")
            return self._patch(self.jobs[name], json.loads(body))
        if method == "DELETE":
            self._stop_pod(name)
            return self.jobs.pop(name)
        return self.jobs[name]

    def _create(self, namespace: str, job: Record) -> Record:
        name = job.get("metadata", {}).get("name", "")
        if not NAME.match(name):
            raise _Refused(422, f'Job.batch "{name}" is invalid: metadata.name: a lowercase RFC 1123 subdomain')
        if name in self.jobs:
            raise _Refused(409, f'jobs.batch "{name}" already exists')
        self._check(job)
        job["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        job["status"] = {"conditions": [], "active": 0}
        self.jobs[name] = job
        return job

    def _check(self, job: Record) -> None:
        spec = job.get("spec", {})
        try:
            kubernetes_validate.validate({k: v for k, v in job.items() if k != "status"}, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise _Refused(422, f"Job.batch is invalid: {error}") from None
        if spec["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
            raise _Refused(422, "Job.batch is invalid: spec.template.spec.restartPolicy: Never or OnFailure")
        for container in spec["template"]["spec"]["containers"]:
            asked = container.get("resources", {})
            for what, value in asked.get("limits", {}).items():
                if what in asked.get("requests", {}) and asked["requests"][what] != value and what == "memory":
                    raise _Refused(422, "Job.batch is invalid: requests must be less than or equal to the limit")

    def _patch(self, job: Record, patch: Record) -> Record:
        new = _merge(job, patch)
        if new["spec"]["template"] != job["spec"]["template"]:
            raise _Refused(422, "Job.batch is invalid: spec.template: field is immutable")
        self._check(new)
        self.jobs[job["metadata"]["name"]] = new
        return new

    def _list(self, objects: dict[str, Record], kind: str, namespace: str, query: dict[str, str]) -> Record:
        wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
        found = [
            o
            for o in objects.values()
            if o["metadata"]["namespace"] == namespace and wanted.items() <= o["metadata"]["labels"].items()
        ]
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 0) or len(found) + 1)
        metadata = {"continue": str(start + limit)} if start + limit < len(found) else {}
        return {"kind": kind, "metadata": metadata, "items": found[start : start + limit]}

    def _log(self, name: str, query: dict[str, str]) -> bytes:
        if name not in self.pods:
            raise _Refused(404, f'pods "{name}" not found')
        text = (self.folder / f"{name}.log").read_bytes()
        lines = text.splitlines()[-int(query.get("tailLines", 1000)) :]
        return b"\n".join(lines)[: int(query.get("limitBytes", 1 << 20))]

    # --- Job controller and kubelet ------------------------------------------------------------------

    def _control(self) -> None:
        while not self._closed.wait(0.02):
            with self._lock:
                for name, job in list(self.jobs.items()):
                    self._reconcile(name, job)

    def _reconcile(self, name: str, job: Record) -> None:
        if any(c["type"] in ("Complete", "Failed") for c in job["status"]["conditions"]):
            return
        pod = self._pod_of(name)
        if job["spec"].get("suspend"):
            if pod:
                self._stop_pod(name)
            return
        if not pod:
            pod = self._make_pod(name, job)
        if pod not in self._processes:
            self._start_pod(pod)
            return
        code = self._processes[pod].poll()
        if code is None:
            return
        del self._processes[pod]
        code = code if code >= 0 else 128 - code
        end = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "finishedAt": _now()}
        self.pods[pod]["status"] = {
            "phase": "Succeeded" if code == 0 else "Failed",
            "containerStatuses": [{"name": "job", "state": {"terminated": end}}],
        }
        if code == 0:
            self._finish(job, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        else:
            self._finish(job, "Failed", "BackoffLimitExceeded", OVER)

    def _finish(self, job: Record, kind: str, reason: str, message: str) -> None:
        job["status"]["active"] = 0
        job["status"]["conditions"].append({"type": kind, "status": "True", "reason": reason, "message": message})

    def _pod_of(self, job: str) -> str:
        return next((n for n, p in self.pods.items() if p["metadata"]["labels"]["job-name"] == job), "")

    def _make_pod(self, name: str, job: Record) -> str:
        pod = f"{name}-{uuid.uuid4().hex[:5]}"
        labels = {
            **job["spec"]["template"]["metadata"]["labels"],
            "batch.kubernetes.io/job-name": name,
            "job-name": name,
        }
        self.pods[pod] = {
            "metadata": {
                "name": pod, "namespace": job["metadata"]["namespace"], "labels": labels, "creationTimestamp": _now(),
            },
            "spec": {**job["spec"]["template"]["spec"], "nodeName": ""},
            "status": {"phase": "Pending"},
        }  # fmt: skip
        job["status"]["active"] = 1
        return pod

    def _start_pod(self, name: str) -> None:
        pod = self.pods[name]
        if not self.schedules:
            message = "0/1 nodes are available: 1 Insufficient cpu."
            pod["status"]["conditions"] = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            ]
            return
        container = pod["spec"]["containers"][0]
        command = [*container.get("command", ["hpn-stage"]), *container.get("args", [])]
        given = {variable["name"]: variable["value"] for variable in container.get("env", [])}
        with (self.folder / f"{name}.log").open("wb") as sink:
            self._processes[name] = subprocess.Popen(
                command, env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **given}, stdin=subprocess.DEVNULL,
                stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        pod["spec"]["nodeName"] = "here"
        pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "job", "state": {"running": {}}}]}

    def _stop_pod(self, job: str) -> None:
        """SIGTERM to the container's first process; the pod is gone when it has ended."""
        pod = self._pod_of(job)
        if not pod:
            return
        process = self._processes.get(pod)
        if process is not None and process.poll() is None:
            if not self.pods[pod]["metadata"].get("deletionTimestamp"):
                self.pods[pod]["metadata"]["deletionTimestamp"] = _now()
                process.terminate()
                # `active` leaves out what is being ended, though its container still runs.
                self.jobs[job]["status"] |= {"active": 0, "terminating": 1}
            return
        self._processes.pop(pod, None)
        self.pods.pop(pod)
        self.jobs[job]["status"] |= {"active": 0, "terminating": 0}


def _merge(old: Any, patch: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(patch, dict):
        return patch
    merged = {**old, **{key: _merge(old.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None}


@contextmanager
def standin(folder: Path) -> Iterator[StandIn]:
    server = StandIn(folder)
    try:
        yield server
    finally:
        server.close()

"""A stand-in for Globus: the part of its Auth and Transfer APIs that a watcher and `hpn publish` use, over HTTP.

There is no Globus without the internet, so the real SDK is pointed at this server (GLOBUS_SDK_SERVICE_URL_*).
Collections are folders, transfers really copy files, and the server fails when a test asks it to. Documents
have the form of the SDK's own examples.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

TOKEN_LIFETIME_S = 172800


@dataclass
class Failure:
    """One answer to a request whose path contains `path` that is an error instead."""

    path: str
    status: int
    code: str = "ServiceUnavailable"
    message: str = "try again later"
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    """Do what was asked before answering so: the answer is lost."""


@dataclass
class GlobusStandIn:
    """collections: id → folder; https: id → address of its HTTPS server. unreadable: source paths that make a
    task fail. held: tasks stay active. copies: every file that was really written. asked: method and path of
    every request."""

    collections: dict[str, Path]
    https: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    held: bool = False
    faults: int = 0
    secrets: set[str] = field(default_factory=lambda: {"secret-1", "refresh-1"})
    tokens: set[str] = field(default_factory=set)
    submissions: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    # --- what it does -----------------------------------------------------------------------------

    def token(self, form: dict[str, list[str]], basic: str) -> tuple[int, dict[str, Any]]:
        offered = form.get("refresh_token", [""])[0] or basic
        if offered not in self.secrets:
            return 400, {"error": "invalid_grant"}
        token = uuid.uuid4().hex
        self.tokens.add(token)
        return 200, {
            "access_token": token, "expires_in": TOKEN_LIFETIME_S, "token_type": "Bearer", "other_tokens": [],
            "scope": "urn:globus:auth:scope:transfer.api.globus.org:all", "resource_server": "transfer.api.globus.org",
        }  # fmt: skip

    def submit(self, data: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        submission = data["submission_id"]
        if submission not in self.submissions:
            return 400, error("ClientError.BadRequest", f"no submission id {submission}")
        for side in ("source_endpoint", "destination_endpoint"):
            if data[side] not in self.collections:
                return 404, error("EndpointNotFound", f"No such endpoint '{data[side]}'")
        known = self.submissions[submission]
        if known:
            return 202, {"DATA_TYPE": "transfer_result", "code": "Duplicate", "task_id": known}
        task_id = self.submissions[submission] = str(uuid.uuid4())
        self.tasks[task_id] = {"status": "ACTIVE", "data": data, "events": []}
        return 202, {"DATA_TYPE": "transfer_result", "code": "Accepted", "task_id": task_id}

    def endpoint(self, endpoint: str) -> tuple[int, dict[str, Any]]:
        if endpoint not in self.collections:
            return 404, error("EndpointNotFound", f"No such endpoint '{endpoint}'")
        return 200, {"DATA_TYPE": "endpoint", "id": endpoint, "entity_type": "GCSv5_mapped_collection",
                     "https_server": self.https.get(endpoint)}  # fmt: skip

    def task(self, task_id: str) -> tuple[int, dict[str, Any]]:
        if task_id not in self.tasks:
            return 404, error("TaskNotFound", f"no task {task_id}")
        task = self.tasks[task_id]
        if task["status"] == "ACTIVE" and not self.held:
            self._carry_out(task)
        document = {"DATA_TYPE": "task", "task_id": task_id, "status": task["status"], "faults": self.faults,
                    "nice_status": "PERMISSION_DENIED" if self.faults else "OK",
                    "nice_status_short_description": "permission denied" if self.faults else "OK",
                    "fatal_error": task.get("fatal_error")}  # fmt: skip
        return 200, document

    def _carry_out(self, task: dict[str, Any]) -> None:
        data = task["data"]
        for item in data["DATA"]:
            source = self._path(data["source_endpoint"], item["source_path"])
            target = self._path(data["destination_endpoint"], item["destination_path"])
            if item["source_path"] in self.unreadable or not source.exists():
                task["status"] = "FAILED"
                task["fatal_error"] = {"code": "FILE_NOT_FOUND", "description": "No such file or directory"}
                details = {"context": [{"operation": "transfer", "path": item["source_path"]}], "error": {}}
                task["events"].append({"DATA_TYPE": "event", "is_error": True, "code": "FILE_NOT_FOUND",
                                       "description": "file not found", "details": json.dumps(details)})  # fmt: skip
                return
            if data.get("sync_level") == 3 and target.exists() and _digest(target) == _digest(source):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            self.copies.append(item["destination_path"])
        task["status"] = "SUCCEEDED"

    def _path(self, endpoint: str, path: str) -> Path:
        return self.collections[endpoint] / path.lstrip("/")


def error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "request_id": "abc123", "resource": ""}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _handler(globus: GlobusStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

        def _answer(self, body: bytes) -> None:
            with globus.lock:
                path = self.path.partition("?")[0]
                globus.asked.append(f"{self.command} {path}")
                failure = next((f for f in globus.failures if f.path in path), None)
                if failure is not None:
                    globus.failures.remove(failure)
                if failure is None or failure.after:
                    status, document = self._do(path, body)
                if failure is not None:
                    status, document = failure.status, error(failure.code, failure.message)
            data = json.dumps(document).encode()
            self.send_response(status)
            for name, value in (failure.headers if failure else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _do(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
            if path == "/v2/oauth2/token":
                return globus.token(parse_qs(body.decode()), self._password())
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in globus.tokens:
                return 401, error("AuthenticationFailed", "Token is not active")
            if path == "/v0.10/submission_id":
                submission = str(uuid.uuid4())
                globus.submissions[submission] = ""
                return 200, {"DATA_TYPE": "submission_id", "value": submission}
            if path == "/v0.10/transfer":
                return globus.submit(json.loads(body))
            _, _, kind, task_id, *rest = path.split("/")
            if kind == "endpoint":
                return globus.endpoint(task_id)
            assert kind == "task"
            if rest == ["event_list"]:
                events = globus.tasks[task_id]["events"]
                return 200, {"DATA_TYPE": "event_list", "DATA": events, "limit": 1, "offset": 0, "total": len(events)}
            return globus.task(task_id)

        def _password(self) -> str:
            import base64

            basic = self.headers.get("Authorization", "").removeprefix("Basic ")
            return base64.b64decode(basic).decode().partition(":")[2]

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(globus: GlobusStandIn) -> Iterator[GlobusStandIn]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(globus))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    globus.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield globus
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

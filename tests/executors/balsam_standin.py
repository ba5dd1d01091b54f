"""A stand-in for a Balsam server, for what a real one cannot be made to do on demand.

It holds sites, apps, jobs and batch jobs in memory and answers as the real server was seen to answer
(integration_tests/hpc runs against that one). Told so, it refuses a token, answers 503 or 429, or carries
out a request and loses the answer. It runs no jobs: tests move them along themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .http_standin import Answer, HttpServer

NOW = "2030-01-01T00:00:00"
Record = dict[str, Any]


class StandIn:
    """The records, the faults, and a log of requests."""

    def __init__(self) -> None:
        self.token = "good"
        self.records: dict[str, dict[int, Record]] = {n: {} for n in ("sites", "apps", "jobs", "batch-jobs", "events")}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        """Status to answer with instead of doing what is asked."""
        self.lose_answers_s = 0.0
        """How long the answer to a POST of jobs takes, after it was carried out."""
        self.add("sites", name="box", path="/site", last_refresh=NOW, allowed_projects=["p"], queued_jobs={})
        self.add("apps", name="HappyStage", site_id=1)
        self._http = HttpServer(self._answer)
        self.url = self._http.url

    def close(self) -> None:
        self._http.close()

    def _answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        return self.handle(method, target, headers.get("Authorization", ""), json.loads(body) if body else None)

    def add(self, kind: str, **fields: Any) -> Record:
        number = len(self.records[kind]) + 1
        self.records[kind][number] = {"id": number, **fields}
        return self.records[kind][number]

    def jobs(self) -> list[Record]:
        return list(self.records["jobs"].values())

    def move(self, job: Record, state: str, **data: Any) -> None:
        """What launchers and agents do."""
        self.add("events", job_id=job["id"], timestamp=NOW, from_state=job["state"], to_state=state, data=data)
        job["state"] = state

    def handle(self, method: str, target: str, authorization: str, body: Any) -> tuple[int, Any]:
        url = urlsplit(target)
        query = parse_qs(url.query)
        self.requests.append((method, url.path))
        fault = self.fault(method, url.path)
        if fault is not None:
            return fault, {"detail": f"as told: {fault}"}
        if authorization != f"Bearer {self.token}":
            return 401, {"detail": "Could not validate credentials"}
        kind, _, number = url.path.strip("/").partition("/")
        if method == "GET" and number.isdigit():
            return 200, self.records[kind][int(number)]
        if method == "GET":
            return 200, self._select(kind, query)
        if method == "POST" and kind == "jobs":
            return 201, self._create_jobs(body)
        if method == "POST" and kind == "batch-jobs":
            fields = {"status_info": {}, "start_time": None, "scheduler_id": None, "state": "pending_submission"}
            return 201, self.add(kind, **(body | fields))
        if method == "PATCH" and kind == "jobs":
            for change in body:
                self.move(self.records["jobs"][change["id"]], change["state"], **change["state_data"])
            return 200, len(body)
        if method == "PUT" and kind == "batch-jobs":
            self.records[kind][int(number)]["state"] = body["state"]
            return 200, self.records[kind][int(number)]
        return 400, {"detail": [{"loc": ["body", "num_nodes"], "msg": "field required"}]}

    def _create_jobs(self, jobs: list[Record]) -> list[Record]:
        made = [
            self.add("jobs", **job, state="STAGED_IN", batch_job_id=None, session_id=None, last_update=NOW)
            for job in jobs
        ]
        time.sleep(self.lose_answers_s)
        return made

    def _select(self, kind: str, query: dict[str, list[str]]) -> Record:
        limit, offset = int(query.pop("limit", ["100"])[0]), int(query.pop("offset", ["0"])[0])
        tags = dict(tag.split(":", 1) for tag in query.pop("tags", []))
        if kind == "jobs":
            query.pop("site_id", None)
        found = [
            record
            for record in list(self.records[kind].values())
            if all(str(record.get(name)) in values for name, values in query.items())
            and tags.items() <= record.get("tags", {}).items()
        ]
        return {"count": len(found), "results": found[offset : offset + limit]}


@contextmanager
def standin() -> Iterator[StandIn]:
    server = StandIn()
    try:
        yield server
    finally:
        server.close()

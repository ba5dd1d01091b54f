"""Executor `balsam`: one Balsam job for each attempt, at a site of a Balsam server, over its REST interface.

Our handle is a token that the job is tagged with. A submission that has a token of its own gets the
same handle whenever it is repeated, and the job is looked for before it is made: neither an answer that
got lost nor a restart of the orchestrator makes two of it, and none is forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import math
import pickle
import threading
import uuid
from collections.abc import Iterable, Mapping

from happyneurons.errors import NotFoundError, UnavailableError, UserError
from happyneurons.executors.balsam.api import BalsamApi, Record
from happyneurons.executors.balsam.books import NOBODY, NOT_YET, Books
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.explain import AGENT_SILENT_S, explain_job
from happyneurons.executors.balsam.keeper import PoolKeeper
from happyneurons.executors.balsam.records import TAG_HAND, TAG_KEY, TAG_POOL, TAG_TOKEN, read_job
from happyneurons.executors.balsam.shape import longest_min, refuse, shape_of
from happyneurons.executors.balsam.watch import Watch
from happyneurons.executors.base import Capacity, PoolStatus, ProcessReport, ProcessState, Submission
from happyneurons.hpc.folders import SiteFolder
from happyneurons.jobs.spec import Resources, parse_job_uri


class BalsamExecutor:
    """Jobs of one Balsam site. States come from a thread that looks at the server every `access.poll_s`.

    A server that is away changes nothing: jobs keep their last known state, and go on by themselves.
    """

    kind = "balsam"
    image_digest = ""

    def __init__(self, name: str, folder: SiteFolder, access: BalsamAccess, pool: PoolLimits) -> None:
        self.name, self.folder, self.access, self.pool = name, folder, access, pool
        self._api = BalsamApi(access)
        self._books = Books()
        self._keeper = PoolKeeper(name, folder, pool, self._api)
        self._watch = Watch(name, access, self._api, self._books, self._keeper)
        self._app: int | None = None
        self._lock = threading.Lock()
        self._watch.start()

    def refuse(self, stage: str, resources: Resources) -> str | None:
        """By the site folder and the pool's limits; which stages there are images for, only the site knows."""
        return refuse(resources, self.folder.facts, self.pool, self.name)

    def resources(self, stage: str, asked: Resources) -> Resources:
        return asked

    def submit(self, submission: Submission) -> str:
        problem = self.refuse(submission.stage, submission.resources)
        if problem:
            raise UserError(f"job {submission.job_uri}: {problem}")
        away = self._watch.problem()
        if away and not self._watch.refuses():  # what is refused is asked for again below, for the reason
            self._watch.wake()
            raise UnavailableError(away)
        handle = self._handle(submission)
        if self._books.knows(handle):
            return handle
        try:
            # Without a token nobody can have submitted it before.
            found = self._api.jobs(tags=[f"{TAG_TOKEN}:{handle}"]) if submission.token else []
            record = found[0] if found else self._create(submission, handle)
        except UnavailableError as error:
            self._watch.note_away(error)
            self._watch.wake()
            raise
        self._books.adopt(handle, read_job(record))
        return handle

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        away = self._watch.problem()
        reports, unheard = {}, False
        for handle in handles:
            report, new = self._books.report(handle)
            unheard |= new
            if away and report.state is not ProcessState.EXITED:
                report = ProcessReport(report.state, report.exit_code, away)
            reports[handle] = report
        if unheard:
            self._watch.wake()
        return reports

    def cancel(self, handle: str) -> None:
        """Drop it if it waits. If it runs, end its batch job, unless others run in that: then only its marker can."""
        self._books.cancel(handle)
        self._watch.wake()

    def explain(self, handle: str) -> str:
        away = self._watch.problem()
        report, _ = self._books.report(handle)
        entry = self._books.entry(handle)
        if entry is None or report is NOBODY:
            return NOBODY.detail
        if report.state is ProcessState.EXITED:
            code = "" if report.exit_code is None else f" with exit code {report.exit_code}"
            last = report.detail.strip().splitlines()[-1:]
            return f"ended{code}{': ' + last[0] if last else ''}"
        if away:
            return f"{away}; last seen {report.state.value}"
        if report is NOT_YET or entry.job is None:
            return NOT_YET.detail
        return entry.note or explain_job(entry.job, entry.seen_for(), self._watch.view)

    def capacity(self) -> Capacity:
        """The pool's nodes; without a pool, those that run now."""
        view, node = self._watch.view, self.folder.facts.node
        running = sum(b.nodes for b in view.batch_jobs.values() if b.state == "running")
        nodes = self.pool.max_nodes or running
        problem = self._watch.problem()
        if not problem and view.agent_silent_s > AGENT_SILENT_S:
            problem = f"the site's Balsam agent has not reported for {view.agent_silent_s / 60:.0f} min"
        return Capacity(nodes * node.cores, nodes * node.memory_gb, problem)

    def pool_status(self) -> PoolStatus:
        """Nodes and batch jobs that there are for our jobs, and what the pool did."""
        return self._keeper.status

    def lead(self, leads: bool) -> None:
        self._keeper.acts = leads

    def close(self) -> None:
        self._watch.close()
        self._api.close()

    def _handle(self, submission: Submission) -> str:
        if not submission.token:
            return uuid.uuid4().hex
        return hashlib.sha256(f"{submission.token}\n{submission.job_uri}".encode()).hexdigest()[:40]

    def _create(self, submission: Submission, handle: str) -> Record:
        _, key = parse_job_uri(submission.job_uri)
        shape = shape_of(submission.resources, self.folder.facts, longest_min(self.folder.facts, self.pool))
        modes = [
            m
            for m, on in (("takeover", submission.takeover), ("retry-quarantined", submission.retry_quarantined))
            if on
        ]
        parameters = {
            "stage": submission.stage,
            "job_uri": submission.job_uri,
            "threads": str(submission.resources.threads_per_rank),
            "walltime_s": str(math.ceil(60 * (submission.resources.walltime_min or 0))),
            "mode": "+".join(modes) or "normal",
        }
        job = {
            "workdir": f"hpn/{handle}",
            "tags": {TAG_TOKEN: handle, TAG_KEY: key[:40], TAG_POOL: self.name, TAG_HAND: "yes"},
            "serialized_parameters": base64.b64encode(pickle.dumps(parameters, protocol=4)).decode(),
            "num_nodes": shape.nodes,
            "ranks_per_node": shape.ranks_per_node,
            "threads_per_rank": submission.resources.threads_per_rank,
            "threads_per_core": shape.threads_per_core,
            "gpus_per_rank": shape.gpus_per_rank,
            "node_packing_count": shape.packing,
            "wall_time_min": shape.walltime_min,
        }
        try:
            return self._api.create_jobs([job | {"app_id": self._app_id()}])[0]
        except NotFoundError:  # `hpn site init` was run again: the app has another number
            return self._api.create_jobs([job | {"app_id": self._app_id(again=True)}])[0]

    def _app_id(self, again: bool = False) -> int:
        with self._lock:
            if self._app is None or again:
                self._app = self._api.app_id(self._api.site(self.access.site), self.access.app)
            return self._app

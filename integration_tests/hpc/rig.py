"""A real Balsam on a real Slurm, for one test session.

The nodes of the Slurm are all this machine, so more of them than it has cores test how the pool grows, not speed.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from integration_tests.hpc.daemons import (
    BALSAM_ENVIRONMENT,
    REPOSITORY,
    START_LIMIT_S,
    Daemons,
    free_ports,
    start_balsam_server,
    start_database,
    start_slurm,
)
from integration_tests.hpc.reaper import members
from tests.worker.waiting import wait_for

from happyneurons.hpc.folders import sites_root
from happyneurons.store.documents import Store

USER, PASSWORD = "rig", "rig-password"
PLUGIN = REPOSITORY / "tests" / "worker" / "plugin"
QUEUE = "debug"
UNFINISHED = (
    "CREATED", "READY", "STAGED_IN", "PREPROCESSED", "RUNNING", "RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT", "RESTART_READY",
    "POSTPROCESSED", "STAGED_OUT",
)  # fmt: skip


@dataclass
class Rig:
    """What tests may use; made by `start_rig`, ended by `end`.

    `api`, `token_file`, `site_name`: what BalsamAccess wants. `site_folder`: path of the site folder (for
    `folder:` in a sites file). `site_path`: the Balsam site. `stores`: folder whose subfolders may be stores.
    """

    folder: Path
    nodes: int
    cores: int
    memory_mb: int
    daemons: Daemons
    port: int = field(default_factory=lambda: free_ports(1)[0])
    site_name: str = "rig"
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each part of the set-up took."""
    _server_environment: dict[str, str] = field(default_factory=dict)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        return self.folder / "client.yml"

    @property
    def token(self) -> str:
        return str(yaml.safe_load(self.token_file.read_text())["token"])

    @property
    def site_folder(self) -> Path:
        return self.folder / "site-folder" / "slurm"

    @property
    def site_path(self) -> Path:
        return self.folder / "site"

    @property
    def stores(self) -> Path:
        return self.folder / "stores"

    def new_store(self, name: str = "") -> Store:
        """An empty store that the site accepts."""
        return Store((self.stores / (name or uuid.uuid4().hex[:12])).as_uri())

    # The server.

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """JSON answer of the Balsam server. Raises urllib's HTTPError."""
        url = f"{self.api}{path}" + (f"?{urllib.parse.urlencode(query, doseq=True)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def stop_server(self) -> None:
        """The Balsam server goes away; its database stays."""
        self.daemons.stop("server")

    def start_server(self) -> None:
        """It is back, at the same address."""
        start_balsam_server(self.daemons, self.port, self._server_environment)

    def site_id(self) -> int:
        """The site's number at the server."""
        return int((self.site_path / ".balsam-site").read_text())

    def app_id(self) -> int:
        """The application's number at the server."""
        apps = self.call("GET", "/apps/", site_id=self.site_id())["results"]
        return next(int(app["id"]) for app in apps if app["name"] == "HappyStage")

    def submit(self, uri: str, parameters: Mapping[str, object] | None = None, **fields: Any) -> int:
        """One Balsam job for a job of ours, as plain REST; `parameters` and `fields` override."""
        text = {"stage": "sandbox", "job_uri": uri, "threads": "1", "walltime_s": "0", "mode": "normal"}
        token = uuid.uuid4().hex[:16]
        job = {
            "app_id": self.app_id(), "workdir": f"hpn/{token}", "tags": {"hpn": token, "hpn_pool": self.site_name},
            "serialized_parameters": base64.b64encode(pickle.dumps({**text, **(parameters or {})})).decode(),
            "num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1, "parameters": {}, **fields,
        }  # fmt: skip
        return int(self.call("POST", "/jobs/", [job])[0]["id"])

    def job(self, job_id: int) -> dict[str, Any]:
        """A Balsam job."""
        return dict(self.call("GET", f"/jobs/{job_id}"))

    def events(self, job_id: int) -> list[dict[str, Any]]:
        """Its transitions, oldest first."""
        found = self.call("GET", "/events/", job_id=job_id)["results"]
        return sorted(found, key=lambda event: event["timestamp"])

    def wait_for_state(self, job_id: int, *states: str, limit_s: float = 120.0) -> None:
        """Until a Balsam job is in one of the states; an end that is none of them fails at once."""

        def reached() -> bool:
            state = self.job(job_id)["state"]
            if state not in states and state in ("FAILED", "JOB_FINISHED"):
                raise AssertionError(f"Balsam job {job_id} is {state}: {self.events(job_id)}")
            return state in states

        wait_for(reached, f"Balsam job {job_id} to be {' or '.join(states)}", limit_s, every_s=0.2)

    def request_nodes(self, nodes: int = 1, walltime_min: int = 20) -> int:
        """Ask for a batch job; its number at the server."""
        body = {
            "site_id": self.site_id(), "num_nodes": nodes, "wall_time_min": walltime_min, "job_mode": "mpi",
            "queue": QUEUE, "project": "none", "filter_tags": {"hpn_pool": self.site_name}, "optional_params": {},
        }  # fmt: skip
        return int(self.call("POST", "/batch-jobs/", body)["id"])

    def batch_job(self, batch_id: int) -> dict[str, Any]:
        """A batch job as Balsam knows it."""
        return dict(self.call("GET", f"/batch-jobs/{batch_id}"))

    def release_nodes(self, batch_id: int) -> None:
        """Have the agent end a batch job."""
        self.call("PUT", f"/batch-jobs/{batch_id}", {"state": "pending_deletion"})

    # The batch system and its processes.

    def slurm_queue(self) -> list[dict[str, str]]:
        """Batch jobs as Slurm knows them: id, state, nodes, node names."""
        out = self.daemons.run("squeue", "-h", "-o", "%i|%T|%D|%N")
        keys = ("id", "state", "nodes", "where")
        return [dict(zip(keys, line.split("|"), strict=True)) for line in out.split()]

    def end_batch_jobs(self, scheduler_id: int | None = None) -> None:
        """End one or all batch jobs as preemption does: SIGTERM, then SIGKILL after KillWait."""
        ids = [str(scheduler_id)] if scheduler_id else [job["id"] for job in self.slurm_queue()]
        if ids:
            self.daemons.run("scancel", *ids)

    def idle(self) -> None:
        """End all batch jobs and what was to run in them, and wait until everybody knows: how a test leaves the rig.

        A job whose launcher was killed would else be taken again by the first batch job of the next test.
        """

        def over() -> bool:
            self.end_batch_jobs()
            live = ("pending_submission", "queued", "running", "pending_deletion")
            found = self.call("GET", "/batch-jobs/", site_id=self.site_id(), state=live)["results"]
            for batch in found:
                if batch["scheduler_id"] is None:  # asked for in the last moment
                    self.call("PUT", f"/batch-jobs/{batch['id']}", {"state": "finished"})
            return not found and not self.slurm_queue()

        wait_for(over, "the end of all batch jobs", 90, every_s=0.5)
        unfinished = self.call("GET", "/jobs/", site_id=self.site_id(), state=UNFINISHED)["results"]
        if unfinished:
            data = {"message": "the test is over"}
            self.call("PATCH", "/jobs/", [{"id": j["id"], "state": "FAILED", "state_data": data} for j in unfinished])

    def processes(self, *words: str) -> list[psutil.Process]:
        """The rig's processes that have all these words in their command line."""
        found = []
        for process in members(str(self.folder)):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def ranks(self, key: str = "") -> list[psutil.Process]:
        """Processes of ranks, of one of our jobs or all."""
        found = self.processes("happyneurons.worker.main run", key)
        return [process for process in found if "mpiexec" not in process.name() and "hydra" not in process.name()]

    def kill_launcher(self) -> int:
        """Kill Balsam's launchers with SIGKILL; how many processes that were."""
        found = self.processes("balsam/cmdline/launcher.py") + self.processes("mpi_mode.py")
        found = [process for process in found if process.name().startswith("python")]
        for process in found:
            process.kill()
        return len(found)

    # Life of the rig.

    def start_agent(self) -> None:
        """Start the site's agent; returns once it has introduced itself to the server."""
        self.daemons.start("agent", str(self.site_path / "hpn-site"), "run")

        def introduced() -> bool:
            self.daemons.check()
            return bool(self.call("GET", f"/sites/{self.site_id()}")["allowed_queues"])

        wait_for(introduced, "the site's agent", START_LIMIT_S)

    def stop_agent(self) -> None:
        """End the agent."""
        self.daemons.stop("agent")

    def make_site_folder(self) -> None:
        """The generic Slurm folder with this rig's sizes, as a lab would copy and change it."""
        shutil.copytree(sites_root() / "slurm", self.site_folder)
        facts_file = self.site_folder / "site.yaml"
        facts = yaml.safe_load(facts_file.read_text())
        facts["node"] |= {"cores": self.cores, "memory_gb": self.memory_mb / 1000, "scratch": f"{self.folder}/scratch"}
        facts["queues"] = {QUEUE: {"max_nodes": self.nodes, "max_walltime_min": 120, "max_queued": 8}}
        facts["default_queue"] = QUEUE
        facts_file.write_text(yaml.safe_dump(facts))

    def make_site(
        self, folder: Path | None = None, path: Path | None = None, name: str = "", images: Path | None = None,
        options: Sequence[str] = (), **user: str,
    ) -> str:  # fmt: skip
        """`hpn site init`, of the rig's own site unless told otherwise; what it printed."""
        command = [
            sys.executable, "-m", "happyneurons.cli.main", "site", "init", str(folder or self.site_folder), "--api",
            self.api, "--path", str(path or self.site_path), "--store", self.stores.as_uri(),
            *(["--images", str(images)] if images else ["--native"]),
            "--balsam-python", str(BALSAM_ENVIRONMENT / "bin" / "python"), "--balsam-name", name or self.site_name,
            "--client-file", str(self.token_file), "--env", f"PYTHONPATH={PLUGIN}", "--sync-s", "1", *options,
        ]  # fmt: skip
        return self.daemons.run(*command, **(user or {"BALSAM_USER": USER, "BALSAM_PASSWORD": PASSWORD}))

    def logs(self, lines: int = 40) -> str:
        """Ends of all logs, for the report of a failed test."""
        site = self.site_path
        found = [
            *self.folder.glob("*.log"),
            *site.glob("log/*"),
            *site.glob("qsubmit/*.*"),
            *site.glob("data/**/job.out"),
        ]
        parts = []
        for path in sorted((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"── {path.relative_to(self.folder)}\n" + "\n".join(text))
        return "\n".join(parts)

    def end(self) -> None:
        """Everything that was started ends; the folder goes, unless HPN_RIG_KEEP is set."""
        try:
            self.daemons.end()
        finally:
            if not os.environ.get("HPN_RIG_KEEP"):
                shutil.rmtree(self.folder, ignore_errors=True)


def start_rig(nodes: int = 4, cores: int = 2, memory_mb: int = 4000) -> Rig:
    """Set all of it up; ends what was started if a part of it fails."""
    folder = Path(tempfile.mkdtemp(prefix="hpn-rig-"))
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    rig = Rig(folder, nodes, cores, memory_mb, Daemons(folder))
    try:
        _time(rig, "database", lambda: rig._server_environment.update(start_database(rig.daemons)))
        _time(rig, "server", lambda: _first_server(rig))
        _time(rig, "slurm", lambda: start_slurm(rig.daemons, nodes, cores, memory_mb))
        rig.stores.mkdir()
        rig.make_site_folder()
        _time(rig, "site", rig.make_site)
        _time(rig, "agent", rig.start_agent)
    except BaseException as error:
        logs = rig.logs()
        rig.end()
        raise RuntimeError(f"the rig did not start: {error}\n{logs[-8000:]}") from error
    return rig


def _first_server(rig: Rig) -> None:
    rig._server_environment |= {"BALSAM_AUTH_SECRET_KEY": os.urandom(32).hex(), "BALSAM_LOG_LEVEL": "WARNING"}
    tables = REPOSITORY / "hpc" / "balsam" / "server" / "create_tables.py"
    rig.daemons.run(str(BALSAM_ENVIRONMENT / "bin" / "python"), str(tables), **rig._server_environment)
    rig.start_server()
    body = json.dumps({"username": USER, "password": PASSWORD}).encode()
    request = urllib.request.Request(
        f"{rig.api}/auth/password/register", data=body, headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()


def _time(rig: Rig, part: str, action: Any) -> None:
    began = time.monotonic()
    action()
    rig.seconds[part] = round(time.monotonic() - began, 1)

"""`hpn site init`: a Balsam site out of a site folder, without questions.

Everything the site needs is written here; the part that needs Balsam itself (registering the site and the
application) is `hpc/balsam/make_site.py`, run by the Python of the site's Balsam environment.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from happyneurons.errors import UnavailableError, UserError
from happyneurons.hpc.folders import ENVIRONMENT_FILE, TEMPLATE_FILE, SiteFolder, sites_root
from happyneurons.store.documents import normalize_uri
from happyneurons.worker.launch import mpiexec

NO_PROJECT = "none"
"""What Balsam is told where batch jobs are charged to nobody; templates leave the line out."""
MAKE_SITE_LIMIT_S = 120.0
_PLAIN = re.compile(r"[A-Za-z0-9._~:/@+=,%-]+")
_SCRATCH = re.compile(r"[A-Za-z0-9._/${}:-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class SitePlan:
    """What a site is to be."""

    folder: SiteFolder
    api: str
    path: Path
    stores: Sequence[str]
    """Roots of stores; jobs in any other place are refused."""
    balsam_python: Path
    images: Path | None = None
    """Folder of STAGE.sif; None: ranks run in this very environment."""
    name: str = ""
    """At the Balsam server [happyneurons-FOLDER]."""
    projects: Sequence[str] = ()
    queue: str | None = None
    """Only this queue of the folder [all]."""
    client_file: Path = field(default_factory=lambda: Path("~/.balsam/client.yml").expanduser())
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables for the ranks."""
    sync_s: int = 10
    """Time between two looks of the agent at the batch system."""
    idle_s: int = 300
    """A launcher that had no work for so long ends its batch job."""

    @property
    def site_name(self) -> str:
        """Its name at the server."""
        return self.name or f"happyneurons-{self.folder.name}"


@dataclass(frozen=True)
class MadeSite:
    """A site that is there now."""

    name: str
    path: Path
    site_id: int
    created: bool
    """False: it was there, and its files are new."""
    sites_entry: str
    """Lines for the sites file."""


def init_site(plan: SitePlan) -> MadeSite:
    """Make a site, or renew the one in its path. Raises UserError, UnavailableError."""
    check_plan(plan)
    with tempfile.TemporaryDirectory(prefix="hpn-site-") as scratch:
        files = Path(scratch)
        write_site_files(plan, files)
        answer = _make_site(plan, files)
    return MadeSite(plan.site_name, plan.path, answer["site_id"], answer["created"], sites_entry(plan))


def check_plan(plan: SitePlan) -> None:
    """Refuse what could not work, before anything is written. Raises UserError."""
    facts = plan.folder.facts
    if not facts.in_service:
        raise UserError(f"site {plan.folder.name}: {facts.title} is out of service; its folder is there as a pattern")
    if not re.match(r"https?://[^/\s]+", plan.api):
        raise UserError(f"--api {plan.api}: write the Balsam server's URL, https://…")
    if not plan.stores:
        raise UserError("--store: name the store that the site may use; without one it would refuse every job")
    for what, values in (("--store", plan.stores), ("--path", [str(plan.path)]), ("--balsam-name", [plan.site_name])):
        for value in values:
            if not _PLAIN.fullmatch(value):
                raise UserError(f"{what} {value}: only letters, digits and . _ ~ : / @ + = , % - can be used")
    if not plan.path.is_absolute():
        raise UserError(f"--path {plan.path}: give an absolute path")
    if facts.project == "required" and not plan.projects:
        raise UserError(f"--project: batch jobs at {plan.folder.name} must name one")
    if plan.queue is not None and plan.queue not in facts.queues:
        raise UserError(f"--queue {plan.queue}: {plan.folder.name} has {', '.join(facts.queues)}")
    if not plan.balsam_python.is_file():
        raise UserError(
            f"--balsam-python {plan.balsam_python}: there is no such file; make the environment with "
            f"`python3.11 -m venv DIR && DIR/bin/pip install -r {balsam_root() / 'requirements.txt'}`"
        )
    if plan.images is not None and facts.container.command not in ("apptainer", "singularity"):
        raise UserError(
            f"--images: ranks at {plan.folder.name} cannot be run in {facts.container.command} yet: --native"
        )
    for name in plan.environment:
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"--env {name}: not a name of a variable")


def write_site_files(plan: SitePlan, target: Path) -> None:
    """Everything of a site but Balsam's own registration."""
    source = balsam_root()
    for name in ("app.py", "hpn-rank", "hpn-site", "platform/hpn_platform.py"):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, target / name)
    (target / "settings.yml").write_text(yaml.safe_dump(balsam_settings(plan), sort_keys=False))
    (target / "settings.yml").chmod(0o600)
    shutil.copy(plan.folder.path / TEMPLATE_FILE, target / TEMPLATE_FILE)
    (target / ENVIRONMENT_FILE).write_text(environment_script(plan))


def balsam_settings(plan: SitePlan) -> dict[str, Any]:
    """The site's settings.yml."""
    facts = plan.folder.facts
    queues = {plan.queue: facts.queues[plan.queue]} if plan.queue else facts.queues
    return {
        "logging": {"level": "INFO", "flush_period": min(5, plan.sync_s)},
        "filter_tags": {},
        "launcher": {
            "idle_ttl_sec": plan.idle_s,
            "delay_sec": 1,
            "error_tail_num_lines": 20,
            "compute_node": facts.balsam.compute_node,
            "mpi_app_launcher": facts.balsam.mpi_app_launcher,
            "local_app_launcher": "balsam.platform.app_run.LocalAppRun",
            "mpirun_allows_node_packing": facts.balsam.node_packing,
        },
        "scheduler": {
            "scheduler_class": facts.balsam.scheduler_class,
            "sync_period": plan.sync_s,
            "allowed_queues": {
                name: {
                    "max_nodes": q.max_nodes, "max_walltime": q.max_walltime_min, "max_queued_jobs": q.max_queued,
                }
                for name, q in queues.items()
            },
            "allowed_projects": list(plan.projects) or [NO_PROJECT],
            "optional_batch_job_params": dict(facts.options),
            "job_template_path": str(plan.path / TEMPLATE_FILE),
        },
        "processing": {"num_workers": 1, "prefetch_depth": 1000},
        # Data lie in the store, batch jobs are asked for by our orchestrator or by hand.
        "transfers": None, "file_cleaner": None, "queue_maintainer": None, "elastic_queue": None,
    }  # fmt: skip


def environment_script(plan: SitePlan) -> str:
    """environment.sh: what init was told, then the site folder's own lines."""
    facts = plan.folder.facts
    if not _SCRATCH.fullmatch(facts.node.scratch):
        raise UserError(f"site {plan.folder.name}: node.scratch may hold letters, digits, variables and . _ / - only")
    values = {
        "HPN_STORES": " ".join(normalize_uri(store) for store in plan.stores),  # as jobs name them
        "HPN_NODE_CORES": str(facts.node.cores),
        "HPN_NODE_GPUS": str(facts.node.gpus),
        "HPN_BALSAM_PYTHON": str(plan.balsam_python),
        "BALSAM_CLIENT_PATH": str(plan.client_file),
    }
    if plan.images is None:
        values |= {"HPN_IMAGES": "", "HPN_PYTHON": sys.executable}
    else:
        values |= {
            "HPN_IMAGES": str(plan.images), "HPN_CONTAINER": facts.container.command,
            "HPN_BINDS": " ".join(facts.container.binds), "HPN_HOST_MPI": facts.container.host_mpi,
        }  # fmt: skip
    if facts.balsam.mpi_app_launcher == "hpn_platform.HydraRun":
        values["HPN_MPIEXEC"] = mpiexec()
    lines = ["# Written by `hpn site init`; call it again rather than change this part."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in {**values, **plan.environment}.items()]
    if facts.node.scratch:
        lines.append(f'export HPN_SCRATCH="{facts.node.scratch}"')  # expanded on the node
    lines.append(f"# Of the site folder {plan.folder.name}:")
    return "\n".join(lines) + "\n" + (plan.folder.path / ENVIRONMENT_FILE).read_text()


def sites_entry(plan: SitePlan) -> str:
    """The site as the sites file wants it."""
    # A folder of ours goes by its name, any other by its path.
    ours = plan.folder.path.parent == sites_root()
    entry: dict[str, Any] = {
        "executor": "balsam",
        "folder": plan.folder.name if ours else str(plan.folder.path),
        "balsam": {"api": plan.api, "site": plan.site_name, "token_file": str(plan.client_file)},
        "pool": {"queue": plan.queue or plan.folder.facts.default_queue, "max_nodes": 1},
    }
    if plan.projects:
        entry["pool"]["project"] = plan.projects[0]
    return yaml.safe_dump({plan.folder.name: entry}, sort_keys=False)


def balsam_root() -> Path:
    """`hpc/balsam`: of the source tree, or where the package installed it."""
    return sites_root().parent / "balsam"


def _make_site(plan: SitePlan, files: Path) -> dict[str, Any]:
    script = balsam_root() / "make_site.py"
    command = [str(plan.balsam_python), str(script), str(plan.path), plan.site_name, plan.api, str(files)]
    # Nothing of our own environment may get in the way of Balsam's.
    environment = _clean_environment() | {"BALSAM_CLIENT_PATH": str(plan.client_file)}
    environment["HPN_NODE_CORES"] = str(plan.folder.facts.node.cores)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MAKE_SITE_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"Balsam did not answer within {MAKE_SITE_LIMIT_S:g} s; is {plan.api} up?") from None
    except OSError as error:
        raise UserError(f"--balsam-python {plan.balsam_python}: {error.strerror}") from None
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer
    last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    if done.returncode == 2:
        raise UserError(last[-1])
    raise UserError(
        f"making the Balsam site failed (exit {done.returncode}): {last[-1]}; by hand: {shlex.join(command)}"
    )


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

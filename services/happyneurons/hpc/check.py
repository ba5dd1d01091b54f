"""`hpn site check`: is a site ready? Asked before anyone spends an allocation.

Each finding says what was looked at, how it is, and what to do about it. A finding that is neither
right nor wrong could not be looked at from here (`ok` is None).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from happyneurons import __version__
from happyneurons.errors import HappyError, UserError
from happyneurons.executors.balsam.api import BalsamApi, Record
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.records import time_of
from happyneurons.hpc.folders import SiteFacts, load_site_folder
from happyneurons.hpc.validate import validate_folder
from happyneurons.worker.launch import mpiexec
from happyneurons.worker.selftest import store_problems

APP_PARAMETERS = {"stage", "job_uri", "threads", "walltime_s", "mode"}
AGENT_SILENT_S = 300.0  # it reports with each look at the batch system, every minute or more often
RUN_LIMIT_S = 300.0
MPICH_ABI = "libmpi.so.12"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    ok: bool | None
    detail: str = ""

    @property
    def word(self) -> str:
        return "SKIPPED" if self.ok is None else "OK" if self.ok else "PROBLEM"


@dataclass(frozen=True)
class CheckPlan:
    """What is looked at; what is empty is not."""

    name: str
    folder: str
    access: BalsamAccess | None = None
    pool: PoolLimits = field(default_factory=PoolLimits)
    store: str = ""
    image: str = ""
    """A SIF file, or the name of an image for podman."""
    native: bool = False
    """Ranks run in this very environment."""
    here: bool = False
    """Start image or environment on this machine: two ranks of the self-test."""


def check_site(plan: CheckPlan) -> Iterator[Finding]:
    """Look at everything, one finding after the other."""
    yield _of("site folder", lambda: _folder(plan.folder))
    try:
        facts = load_site_folder(plan.folder).facts
    except UserError:
        return
    site: Record | None = None
    if plan.access is None:
        yield Finding("Balsam", None, "no sites file entry with `balsam:` was given")
    else:
        api = BalsamApi(plan.access)
        try:
            yield from _server(api, plan.access)
            site = _site_record(api, plan.access)
        except HappyError:
            pass  # said by a finding
        finally:
            api.close()
        yield _of("limits of the pool", lambda: _pool(plan.pool, facts, site))
    if plan.store:
        yield _of("store", lambda: _problems(store_problems(plan.store), f"{plan.store}: put-if-absent, read, delete"))
    else:
        yield Finding("store", None, "none was named (--store)")
    yield from _ranks(plan, facts)


def _of(what: str, look: Callable[[], str]) -> Finding:
    """A finding out of a function that returns what is right, or raises what is not."""
    try:
        return Finding(what, True, look())
    except HappyError as error:
        return Finding(what, False, str(error))


def _problems(found: Sequence[str], right: str) -> str:
    if found:
        raise UserError("; ".join(found))
    return right


def _folder(name: str) -> str:
    _problems(validate_folder(name), "")
    folder = load_site_folder(name)
    if not folder.facts.in_service:
        raise UserError(f"{folder.facts.title} is out of service; its folder is there as a pattern")
    return f"{folder.facts.title}, {folder.path}"


# --- Balsam ------------------------------------------------------------------------------------


def _server(api: BalsamApi, access: BalsamAccess) -> Iterator[Finding]:
    """Server and token, site, agent, application; ends at the first without which the next cannot be."""
    server = _of("Balsam server and token", lambda: f"{api.root}, {len(api.find('/sites/'))} sites of ours")
    yield server
    if not server.ok:
        return
    known = _of("Balsam site", lambda: f"{access.site}, in {api.site(access.site)['path']}")
    yield known
    if known.ok:
        yield _of("agent of the site", lambda: _agent(api.site(access.site)))
        yield _of("application", lambda: _app(api, access))


def _site_record(api: BalsamApi, access: BalsamAccess) -> Record:
    return api.site(access.site)


def _agent(site: Record) -> str:
    silent = (datetime.now(UTC) - time_of(site["last_refresh"])).total_seconds()
    if silent > AGENT_SILENT_S:
        raise UserError(
            f"it has not reported for {silent / 60:.0f} min: start it at the site with {site['path']}/hpn-site start "
            "(or set the clocks: server and this machine must agree)"
        )
    return f"reported {max(0.0, silent):.0f} s ago"


def _app(api: BalsamApi, access: BalsamAccess) -> str:
    number = api.app_id(api.site(access.site), access.app)
    found = next(app for app in api.find("/apps/", id=[number]) if app["id"] == number)
    given = set(found.get("parameters") or {})
    if given != APP_PARAMETERS:
        raise UserError(
            f"{access.app} takes {', '.join(sorted(given)) or 'nothing'}, but we send "
            f"{', '.join(sorted(APP_PARAMETERS))}: renew it with `hpn site init` of this version"
        )
    return f"{access.app} ({number})"


def _pool(pool: PoolLimits, facts: SiteFacts, site: Record | None) -> str:
    """Whether what the pool would ask for is what the queue gives."""
    name = pool.queue or facts.default_queue
    queue = facts.queues.get(name)
    if queue is None:
        raise UserError(f"pool.queue {name!r} is none of the site folder's queues: {', '.join(sorted(facts.queues))}")
    problems = []
    nodes = pool.nodes_per_batch or min(pool.max_nodes, queue.max_nodes) or queue.min_nodes
    if pool.max_nodes and pool.max_nodes < queue.min_nodes:
        problems.append(f"queue {name} gives no fewer than {queue.min_nodes} nodes; pool.max_nodes is {pool.max_nodes}")
    elif not queue.min_nodes <= nodes <= queue.max_nodes:
        problems.append(f"queue {name} gives {queue.min_nodes} to {queue.max_nodes} nodes, not {nodes} at a time")
    longest = queue.walltime_limit_min(max(nodes, queue.min_nodes))
    if pool.walltime_min > longest:
        problems.append(f"queue {name} gives {nodes} nodes at most {longest} min; pool.walltime_min is more")
    if facts.project == "required" and not pool.project:
        problems.append("batch jobs here must name a project: set pool.project")
    unknown = sorted(set(pool.options) - set(facts.options))
    if unknown:
        problems.append(f"pool.options: the job template knows no {', '.join(unknown)}")
    if site is not None:
        queues, projects = site.get("allowed_queues") or {}, site.get("allowed_projects") or []
        if name not in queues:
            problems.append(f"Balsam's site has no queue {name} (it has: {', '.join(queues) or 'none'})")
        if pool.project and pool.project not in projects:
            problems.append(f"Balsam's site has no project {pool.project} (it has: {', '.join(projects) or 'none'})")
    asks = f"up to {pool.max_nodes} nodes" if pool.max_nodes else "asks for none by itself"
    return _problems(problems, f"queue {name}, {pool.walltime_min} min, {asks}")


# --- ranks -------------------------------------------------------------------------------------


def _ranks(plan: CheckPlan, facts: SiteFacts) -> Iterator[Finding]:
    """The environment that ranks run in: is it ours, and do two of them find one another?"""
    if not plan.image and not plan.native:
        yield Finding("ranks", None, "say what they run in: --image SIF, or --native")
        return
    if plan.image.endswith(".sif") and not Path(plan.image).is_file():
        yield Finding("image", False, f"there is no {plan.image}: `make sif` makes it")
        return
    if not plan.here:
        yield Finding("ranks", None, "two of them are started with --here (on a compute node, not on a login node)")
        return
    sif = plan.image.endswith(".sif")
    command = rank_command(plan, facts, os.environ)
    yield _of("stages", lambda: _describe(command))
    host_mpi = host_mpi_folder(facts, os.environ)
    if host_mpi and not plan.native:
        yield _of("host MPI", lambda: _host_mpi(host_mpi))
    # An image for podman cannot be started by an mpiexec outside of it; two ranks are then started inside.
    two = [mpiexec(), "-n", "2", *command] if plan.native or sif else [*command[:-1], "/opt/hpn/bin/mpiexec", "-n", "2"]
    two += ["hpn-stage"] if not plan.native and not sif else []
    store = ["--store", plan.store] if plan.store else []
    yield _of("two ranks", lambda: _two_ranks([*two, "selftest", *store], host_mpi if not plan.native else ""))


def rank_command(plan: CheckPlan, facts: SiteFacts, environment: Mapping[str, str]) -> list[str]:
    """What starts `hpn-stage` in the environment of ranks; its last word is the entry point."""
    if plan.native:
        return [sys.executable, "-m", "mpi4py", "-m", "happyneurons.worker.main"]
    binds = [*facts.container.binds, *host_mpi_folder(facts, environment).split(":")]
    store = _local_folder(plan.store)
    present = [path for path in [*binds, store] if path and Path(path).exists()]
    if plan.image.endswith(".sif"):
        runner = facts.container.command if facts.container.command == "singularity" else "apptainer"
        flags = [word for path in present for word in ("--bind", path)]
        return [environment.get("HPN_CONTAINER") or runner, "exec", *flags, plan.image, "hpn-stage"]
    flags = [word for path in present for word in ("--volume", f"{path}:{path}")]
    variables = ["--env", "HPN_HOST_MPI"] if environment.get("HPN_HOST_MPI") else []
    return ["podman", "run", "--rm", "--entrypoint", "", *flags, *variables, plan.image, "hpn-stage"]


def host_mpi_folder(facts: SiteFacts, environment: Mapping[str, str]) -> str:
    """Folders, by colons, of the host's MPI that images are to use; empty: their own."""
    return environment.get("HPN_HOST_MPI") or facts.container.host_mpi


def _local_folder(store: str) -> str:
    return store.removeprefix("file://") if store.startswith(("file://", "/")) else ""


def _host_mpi(folders: str) -> str:
    for folder in folders.split(":"):
        if (Path(folder) / MPICH_ABI).exists():
            return f"{folder}/{MPICH_ABI}"
    raise UserError(f"HPN_HOST_MPI={folders}: no {MPICH_ABI} (the MPICH ABI) in these folders; see the site's notes")


def _describe(command: Sequence[str]) -> str:
    try:
        stages = json.loads(_run([*command, "describe"]))
        names = [str(stage["name"]) for stage in stages]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{shlex.join(command)} describe: its answer is not that of an hpn-stage") from None
    return _problems([] if names else ["it has no stages"], ", ".join(names))


def _two_ranks(command: Sequence[str], host_mpi: str) -> str:
    """The self-test with two ranks, and what it says."""
    try:
        said: dict[str, Any] = json.loads(_run(command, HPN_HOST_MPI=host_mpi).strip().splitlines()[-1])
        problems = [*said["problems"]]
        version, libraries, ranks = str(said["version"]), list(said["libmpi"]), int(said["ranks"])
    except (ValueError, TypeError, KeyError, IndexError):
        raise UserError(f"{shlex.join(command)}: its answer is not that of a self-test") from None
    if version != __version__:
        problems.append(f"it has version {version}, this is {__version__}: build images and control plane together")
    if ranks != 2:
        problems.append(f"{ranks} ranks found one another, not 2: the launcher is not of the MPI that ranks load")
    if not any(Path(path).name.startswith(MPICH_ABI) for path in libraries):
        problems.append(f"ranks load {', '.join(libraries) or 'no libmpi'}: that is not the MPICH ABI ({MPICH_ABI})")
    folders = [os.path.realpath(folder) for folder in host_mpi.split(":") if folder]
    if folders and not any(os.path.realpath(path).startswith(tuple(folders)) for path in libraries):
        problems.append(f"ranks load {', '.join(libraries)} and not the host's MPI in {host_mpi}")
    return _problems(problems, f"version {version}, {', '.join(libraries)}, scratch {said.get('scratch')}")


def _run(command: Sequence[str], **variables: str) -> str:
    """Standard output of a command. Raises UserError with its last words."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: text for name, text in variables.items() if text}}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{shlex.join(command)}: no answer within {RUN_LIMIT_S:g} s") from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; is it installed here?") from None
    if done.returncode and not done.stdout.strip().endswith("}"):
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr + "\n" + done.stdout)  # colours
        last = [line.strip() for line in ["no output", *said.splitlines()] if line.strip()][-1]
        raise UserError(f"{shlex.join(command)}: exit {done.returncode}: {last[:300]}")
    return done.stdout

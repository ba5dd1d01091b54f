"""Checking a site folder: facts that agree with one another, scripts that a batch system would take.

Nothing is run at the site. Job templates are rendered with Jinja as Balsam renders them, for short and
long walltimes, and read as the scheduler would read them.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from happyneurons.errors import UserError
from happyneurons.executors.mapping import DEFAULT, NodeSize, map_resources
from happyneurons.hpc.folders import ENVIRONMENT_FILE, TEMPLATE_FILE, SiteFolder, load_site_folder, sites_root
from happyneurons.jobs.spec import Resources
from happyneurons.stages import stage_names

WALLTIMES_MIN = (30, 60, 90, 1500)
PREFIXES = {"slurm": "#SBATCH", "pbs": "#PBS", "cobalt": "#COBALT"}
MARKED = {"project": "hpnproject", "queue": "hpnqueue", "num_nodes": 7, "filter_tags": {"hpn_pool": "hpnpool"}}
SECRET = re.compile(
    r"(?i)\b\w*(token|password|passwd|secret|credential|private_key|api_?key|access_key)s?\s*=\s*[^\s$\"']"
    r"|-----BEGIN|\beyJ[A-Za-z0-9_-]{10,}|://[^/\s:@]+:[^/\s@]+@"
)
BASH_LIMIT_S = 30.0


def validate_folder(name: str) -> list[str]:
    """What is wrong with a site folder (a name of hpc/sites, or a path), one line each; empty if nothing."""
    try:
        folder = load_site_folder(name)
    except UserError as error:
        return [str(error)]
    found = [*_facts(folder), *_resources(folder)]
    for file, check in ((ENVIRONMENT_FILE, _environment), (TEMPLATE_FILE, _template)):
        path = folder.path / file
        found += check(folder, path) if path.is_file() else [f"{file} is missing"]
    return found


def render_template(folder: SiteFolder, **values: Any) -> str:
    """The batch script that Balsam would submit. `values` override the marked defaults. Raises UserError."""
    import jinja2

    given = {
        **MARKED, "job_mode": "mpi", "wall_time_min": 60, "partitions": "", "balsam_site_path": "/hpn/site",
        "launcher_cmd": "/hpn/python /hpn/launcher.py", "balsam_bin": "/hpn/bin", "pg_bin": None,
        "optional_params": dict(folder.facts.options), **values,
    }  # fmt: skip
    text = (folder.path / TEMPLATE_FILE).read_text()
    try:
        # Balsam's renderer forgives unknown names, which then become nothing; here they are errors.
        return jinja2.Template(text, undefined=jinja2.StrictUndefined).render(given)
    except jinja2.TemplateError as error:
        raise UserError(f"{TEMPLATE_FILE}: {error}") from None


def directives(script: str, prefix: str) -> list[str]:
    """The scheduler's directives, as it finds them: from the top to the first command."""
    found = []
    for line in script.splitlines():
        if line.startswith(prefix):
            found.append(line[len(prefix) :].strip())
        elif line.strip() and not line.startswith("#"):
            break
    return found


def walltime_minutes(scheduler: str, found: Iterable[str]) -> int | None:
    """Walltime that the scheduler would understand; None if there is none, or it is written wrongly."""
    text = " ".join(found)
    if scheduler == "pbs":
        match = re.search(r"-l \S*\bwalltime=(\d+):([0-5]\d):([0-5]\d)(?!\S)", text)
        return int(match[1]) * 60 + int(match[2]) if match else None
    match = re.search(r"(?:--time=|-t )(\d+)(?!\S)", text)  # both take plain minutes
    return int(match[1]) if match else None


def class_paths(folder: SiteFolder) -> dict[str, str]:
    """The classes that the site's Balsam environment must have, by what they are for."""
    return folder.facts.balsam.model_dump(exclude={"node_packing"})


def own_classes() -> set[str]:
    """Public classes of `hpn_platform`, which we install into sites; read without importing it (it needs Balsam)."""
    module = sites_root().parent / "balsam" / "platform" / "hpn_platform.py"
    tree = ast.parse(module.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}


def _facts(folder: SiteFolder) -> Iterator[str]:
    facts = folder.facts
    for name, queue in facts.queues.items():
        if queue.min_nodes > queue.max_nodes:
            yield f"queues.{name}: min_nodes {queue.min_nodes} is more than max_nodes {queue.max_nodes}"
        steps = sorted(queue.walltime_by_nodes.items())
        if steps and (steps[0][0] > queue.min_nodes or steps[-1][0] > queue.max_nodes):
            yield f"queues.{name}: walltime_by_nodes must begin at min_nodes and end before max_nodes"
        if steps and max(minutes for _, minutes in steps) != queue.max_walltime_min:
            yield f"queues.{name}: max_walltime_min must be the longest of walltime_by_nodes"
    if facts.scheduler == "local" and any(q.max_nodes > 1 for q in facts.queues.values()):
        yield "queues: without a batch system there is one node"
    if facts.node.gpus and not facts.node.gpu_type:
        yield "node: gpus without gpu_type"
    if not facts.notes.strip():
        yield "notes: say where the figures come from, and when you looked"
    for role, path in class_paths(folder).items():
        module, _, name = path.rpartition(".")
        if module == "hpn_platform" and name not in own_classes():
            yield f"balsam.{role}: hpn_platform has no class {name}"
        elif module != "hpn_platform" and not path.startswith("balsam.platform."):
            yield f"balsam.{role}: {path} is neither in balsam.platform nor in hpn_platform"


def _resources(folder: SiteFolder) -> Iterator[str]:
    facts = folder.facts
    known = {DEFAULT, *stage_names()}
    for name in facts.resources:
        if name not in known:
            yield f"resources.{name}: no such stage; there are {', '.join(sorted(known))}"
            continue
        job = map_resources(name, Resources(), facts.resources, NodeSize(facts.node.cores, facts.node.gpus))
        if job.threads_per_rank > facts.node.cores * facts.node.threads_per_core:
            yield f"resources.{name}: {job.threads_per_rank} threads a rank, more than a node has"
        if job.gpus_per_rank > facts.node.gpus:
            yield f"resources.{name}: {job.gpus_per_rank:g} GPUs a rank, a node has {facts.node.gpus}"
        if job.memory_gb and job.ranks == 1 and job.memory_gb > facts.node.memory_gb:
            yield f"resources.{name}: {job.memory_gb:g} GB for one rank, a node has {facts.node.memory_gb:g}"


def _environment(folder: SiteFolder, path: Path) -> Iterator[str]:
    text = path.read_text()
    problem = _bash(text)
    if problem:
        yield f"{ENVIRONMENT_FILE}: {problem}"
    yield from _secrets(ENVIRONMENT_FILE, text)


def _template(folder: SiteFolder, path: Path) -> Iterator[str]:
    yield from _secrets(TEMPLATE_FILE, path.read_text())
    problems: list[str] = []
    try:
        for minutes in WALLTIMES_MIN:
            problems += _script(folder, render_template(folder, wall_time_min=minutes), minutes)
        problems += _options(folder)
    except UserError as error:
        problems.append(str(error))
    own = f"{TEMPLATE_FILE}: "
    yield from (own + problem.removeprefix(own) for problem in dict.fromkeys(problems))


def _script(folder: SiteFolder, script: str, minutes: int) -> Iterator[str]:
    """What is wrong with a rendered batch script."""
    facts = folder.facts
    problem = _bash(script)
    if problem:
        yield problem
    if not script.startswith("#!"):
        yield "the first line must name the shell (#!/bin/bash)"
    for what, pattern in (
        ("does not source ./environment.sh", r"(?m)^(source|\.) (\./|\S*/)environment\.sh"),
        ("does not export HPN_BATCH_END: ranks could not drain in time", r"(?m)^export HPN_BATCH_END="),
        ("does not export BALSAM_SITE_PATH", r"(?m)^export BALSAM_SITE_PATH=/hpn/site"),
        ("does not start the launcher", r"/hpn/launcher\.py\b.* -j mpi\b"),
        (f"the launcher does not get the walltime (-t {minutes})", rf"/hpn/launcher\.py\b.* -t {minutes}\b"),
        ("does not pass filter_tags on: the launcher would take other sites' jobs", r"--tag hpn_pool=hpnpool\b"),
    ):
        if not re.search(pattern, re.sub(r"\\\n", " ", script)):
            yield what
    if facts.scheduler == "local":
        return
    prefix = PREFIXES[facts.scheduler]
    found = directives(script, prefix)
    text = " ".join(found)
    if script.count(f"\n{prefix}") != len(found):
        yield f"some {prefix} lines come after the first command: the scheduler would not read them"
    if not re.search(r"(--nodes=7|select=7\b|-n 7\b)", text):
        yield f"has no {prefix} line with the number of nodes"
    if walltime_minutes(facts.scheduler, found) != minutes:
        yield f"has no {prefix} line with the walltime in this scheduler's format (tried {minutes} minutes)"
    if not re.search(r"(--partition=|--qos=|-q )hpnqueue\b", text):
        yield f"has no {prefix} line with the queue"
    if not re.search(r"(--account=|-A )hpnproject\b", text):
        yield f"has no {prefix} line with the project"
    if facts.options.get("filesystems"):
        if not re.search(rf"filesystems={re.escape(facts.options['filesystems'])}(?!\S)", text):
            yield f"has no {prefix} line with the filesystems, which the site demands"


def _options(folder: SiteFolder) -> Iterator[str]:
    """Each option must change the script, and none may be asked for that site.yaml does not list."""
    plain = render_template(folder)
    for name in folder.facts.options:
        given = {**folder.facts.options, name: "hpnoption"}
        if "hpnoption" not in render_template(folder, optional_params=given) and plain:
            yield f"the option {name} of site.yaml does not appear in it"
    text = (folder.path / TEMPLATE_FILE).read_text()
    used = set(re.findall(r"optional_params(?:\.get\(|\[)[\"'](\w+)", text))
    for name in sorted(used - set(folder.facts.options)):
        yield f"uses the option {name}, which site.yaml does not list (Balsam refuses it)"
    if folder.facts.project == "optional" and folder.facts.scheduler != "local":
        prefix = PREFIXES[folder.facts.scheduler]
        bare = " ".join(directives(render_template(folder, project="none"), prefix))
        if re.search(r"(--account=|-A )none\b", bare):
            yield 'charges a project "none": leave the line out then, the project is optional here'


def _secrets(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if SECRET.search(line):
            yield f"{name}:{number}: looks like a secret; site folders are public, secrets belong in the client file"


def _bash(script: str) -> str:
    """What bash says of a script's grammar; empty if nothing."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=BASH_LIMIT_S)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else lines[0] if lines else "bash: not a script"

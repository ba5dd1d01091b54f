"""Site folders: what is known of an HPC system, as data. One folder each in `hpc/sites`.

::

    hpc/sites/NAME/site.yaml         SiteFacts
    hpc/sites/NAME/job-template.sh   the batch script (Jinja, as Balsam renders it)
    hpc/sites/NAME/environment.sh    sourced on compute nodes before ranks start: modules, proxies, paths
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from happyneurons.errors import UserError
from happyneurons.executors.mapping import StageResources

FACTS_FILE, TEMPLATE_FILE, ENVIRONMENT_FILE = "site.yaml", "job-template.sh", "environment.sh"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeFacts(_Data):
    """One compute node."""

    cores: int = Field(ge=1, description="Physical cores that jobs may use")
    threads_per_core: int = Field(1, ge=1, le=8, description="Hardware threads of a core")
    memory_gb: float = Field(gt=0)
    gpus: int = Field(0, ge=0)
    gpu_type: str = ""
    scratch: str = Field("", description="Node-local folder for temporary files, as the shell sees it; empty: none")


class QueueFacts(_Data):
    """The rules of one queue or partition."""

    min_nodes: int = Field(1, ge=1)
    max_nodes: int = Field(ge=1)
    max_walltime_min: int = Field(ge=1)
    max_queued: int = Field(100, ge=1, description="Batch jobs a user may have in it at a time")
    preemptable: bool = Field(False, description="Jobs may be killed without warning")
    walltime_by_nodes: dict[int, int] = Field(
        default_factory=dict, description="Nodes from which on so many minutes are given, where larger jobs get more"
    )

    def walltime_limit_min(self, nodes: int) -> int:
        """Longest walltime of a batch job of so many nodes, in minutes."""
        steps = [minutes for least, minutes in sorted(self.walltime_by_nodes.items()) if least <= nodes]
        return steps[-1] if steps else self.max_walltime_min


class BalsamFacts(_Data):
    """Classes of the site's Balsam environment (dotted paths)."""

    compute_node: str
    mpi_app_launcher: str
    scheduler_class: str
    node_packing: bool = Field(description="Several MPI jobs may share a node")


class ContainerFacts(_Data):
    """How images are run on compute nodes."""

    command: Literal["apptainer", "singularity", "podman", "shifter", "none"] = "apptainer"
    binds: tuple[str, ...] = Field((), description="Paths of the host that ranks need inside, besides the store")
    host_mpi: str = Field("", description="Folder with the host's MPICH-ABI libmpi.so.12; empty: the image's own MPI")


class SiteFacts(_Data):
    """`site.yaml`."""

    title: str
    in_service: bool = True
    scheduler: Literal["slurm", "pbs", "cobalt", "local"]
    node: NodeFacts
    queues: dict[str, QueueFacts] = Field(min_length=1)
    default_queue: str
    project: Literal["required", "optional"] = Field("optional", description="Whether batch jobs must name a project")
    options: dict[str, str] = Field(
        default_factory=dict, description="Further parameters of the job template with their defaults (filesystems, …)"
    )
    balsam: BalsamFacts
    container: ContainerFacts = ContainerFacts()
    resources: dict[str, StageResources] = Field(
        default_factory=dict, description="Ranks, threads, … of stages here, where the pipeline does not say"
    )
    notes: str = Field("", description="What a user of this site has to know; with the source")


class SiteFolder(BaseModel):
    """A site folder that was read."""

    model_config = ConfigDict(frozen=True)
    name: str
    path: Path
    facts: SiteFacts


def sites_root() -> Path:
    """`hpc/sites`: of the source tree, or where the package installed it."""
    source = Path(__file__).resolve().parents[3] / "hpc" / "sites"
    return source if source.is_dir() else Path(sys.prefix) / "share" / "happyneurons" / "hpc" / "sites"


def site_names() -> list[str]:
    """Names of the site folders that come with HAPPYNeurons."""
    return sorted(path.parent.name for path in sites_root().glob(f"*/{FACTS_FILE}"))


def load_site_folder(name: str) -> SiteFolder:
    """A site folder by its name, or by its path (anything with a slash). Raises UserError."""
    path = Path(name).expanduser() if "/" in name else sites_root() / name
    if not (path / FACTS_FILE).is_file():
        known = ", ".join(site_names())
        raise UserError(f"no site folder {name!r}: there is no {path / FACTS_FILE}; known are {known}")
    try:
        document: Any = yaml.safe_load((path / FACTS_FILE).read_text())
        facts = SiteFacts.model_validate(document)
    except yaml.YAMLError as error:
        raise UserError(f"{path / FACTS_FILE}: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path / FACTS_FILE}: {problems}") from None
    if facts.default_queue not in facts.queues:
        raise UserError(f"{path / FACTS_FILE}: default_queue {facts.default_queue!r} is none of the queues")
    return SiteFolder(name=path.name, path=path, facts=facts)

"""Sites from a YAML file: which executor takes jobs where.

::

    local: {executor: local, cores: 8, memory_gb: 32}
    gpu:   {executor: service, address: gpu-host:50051, description: The GPU box}
    far:   {executor: service, address: "far:50051", access: {ca: ca.crt, cert: tls.crt, key: tls.key}}
    many:  {executor: service, address: "dns:///stages.lab.svc:50051"}    # each address of the name is a server
    k8s:   {executor: kubernetes, cores: 64, memory_gb: 256, kubernetes: {image: "lab/happyneurons/{stage}:0.1.0"}}
    polaris:
      executor: balsam
      folder: polaris                      # of hpc/sites, or a path
      balsam: {api: "https://balsam.example.org", site: happyneurons-polaris, token_file: ~/.balsam/client.yml}
      pool: {queue: prod, project: connectome, max_nodes: 32, walltime_min: 120}
      cost: {per_node_hour: 1, currency: node_hours, budget: 5000}     # for metrics; budget: what 30 days may cost
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from happyneurons.errors import UserError
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.base import Executor
from happyneurons.executors.kubernetes.config import KubernetesAccess
from happyneurons.executors.mapping import MappedExecutor, NodeSize, StageResources, merge_resources
from happyneurons.orchestrator.costs import SiteCost, SiteRate, site_rate
from happyneurons.rpc.access import Access


class SiteConfig(BaseModel):
    """One site of the file."""

    model_config = ConfigDict(extra="forbid")
    executor: Literal["local", "service", "balsam", "kubernetes"]
    description: str = ""
    cores: int | None = Field(None, ge=1, description="local [all], kubernetes: cores that jobs may use together")
    memory_gb: float | None = Field(None, gt=0, description="local [all], kubernetes: memory …, GB")
    address: str | None = Field(None, description="service: host:port, or dns:///NAME:PORT, of StageServices")
    access: Access | None = Field(
        None, description="service: ca, cert, key, server_name, token_file to get in [HPN_TLS_CA, … of the environment]"
    )
    folder: str | None = Field(None, description="balsam: site folder, a name of hpc/sites or a path")
    balsam: BalsamAccess | None = Field(None, description="balsam: server, site and token")
    kubernetes: KubernetesAccess | None = Field(None, description="kubernetes: namespace, images, pod template")
    pool: PoolLimits = Field(default_factory=PoolLimits, description="balsam: batch jobs that may be asked for")
    cost: SiteCost | None = Field(None, description="Price of its time and the budget, for metrics")
    image_digest: str = Field("", description="Identity of the images at this site; part of the keys of its jobs")
    resources: dict[str, StageResources] = Field(
        default_factory=dict, description="Ranks, threads, … of stages (or `default`) where the pipeline does not say"
    )


def load_sites(path: Path | None) -> dict[str, SiteConfig]:
    """Sites of a file; without one, this machine as `local`. Raises UserError."""
    if path is None:
        return {"local": SiteConfig(executor="local", description="this machine")}
    try:
        document: Any = yaml.safe_load(path.read_text())
        return {str(name): SiteConfig.model_validate(value) for name, value in dict(document).items()}
    except OSError as error:
        raise UserError(f"sites file {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValidationError, TypeError, ValueError) as error:
        raise UserError(f"sites file {path}: {error}") from None


def rate_of(name: str, config: SiteConfig) -> SiteRate:
    """What a site's cores are worth. Raises UserError if its price needs to know the size of a node."""
    cores = config.cores
    if config.executor == "balsam" and config.folder:
        from happyneurons.hpc.folders import load_site_folder

        cores = load_site_folder(config.folder).facts.node.cores
    elif config.executor == "local":
        cores = cores or os.cpu_count()
    try:
        return site_rate(config.cost, cores)
    except ValueError as error:
        raise UserError(f"site {name}: {error}") from None


def make_executor(name: str, config: SiteConfig) -> Executor:
    """The executor of a site. Raises UserError if its configuration lacks something."""
    executor = _make_executor(name, config)
    executor.image_digest = config.image_digest
    return executor


def _make_executor(name: str, config: SiteConfig) -> Executor:
    if config.executor == "local":
        from happyneurons.executors.local import LocalExecutor

        local = LocalExecutor(config.cores, config.memory_gb)
        return _mapped(local, config.resources, NodeSize(int(local.capacity().cores)))
    if config.executor == "balsam":
        from happyneurons.executors.balsam.executor import BalsamExecutor
        from happyneurons.hpc.folders import load_site_folder

        if not config.folder or config.balsam is None:
            raise UserError(f"site {name}: executor balsam needs `folder:` and `balsam: {{api:, site:, token_file:}}`")
        folder = load_site_folder(config.folder)
        node = NodeSize(folder.facts.node.cores, folder.facts.node.gpus)
        balsam = BalsamExecutor(name, folder, config.balsam, config.pool)
        return _mapped(balsam, merge_resources(folder.facts.resources, config.resources), node)
    if config.executor == "kubernetes":
        from happyneurons.executors.kubernetes.executor import KubernetesExecutor

        if not config.cores or not config.memory_gb or config.kubernetes is None:
            raise UserError(
                f"site {name}: executor kubernetes needs `cores:`, `memory_gb:` and `kubernetes: {{image:}}`"
            )
        jobs = KubernetesExecutor(name, config.kubernetes, config.cores, config.memory_gb)
        return _mapped(jobs, config.resources, NodeSize(config.kubernetes.node_cores or config.cores))
    from happyneurons.executors.service import ServiceExecutor

    if not config.address:
        raise UserError(f"site {name}: executor service needs `address: host:port`")
    service = ServiceExecutor(config.address, access=config.access)
    if not config.cores and any("auto" in (r.ranks, r.threads_per_rank) for r in config.resources.values()):
        raise UserError(f"site {name}: resources with `auto` need `cores:`, what the server's machine has")
    return _mapped(service, config.resources, NodeSize(config.cores or 1))


def _mapped(executor: Executor, resources: dict[str, StageResources], node: NodeSize) -> Executor:
    return MappedExecutor(executor, resources, node) if resources else executor

"""How a job is laid on a site's nodes, and what no node there can ever carry.

Balsam starts `nodes × ranks_per_node` processes. Of two or more processes one coordinates and mostly
sleeps, so on a single node it comes on top of the cores. On several nodes it takes a worker's place:
what fills the nodes exactly runs with one worker less, rather than on one node more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from happyneurons.executors.balsam.config import PoolLimits
from happyneurons.hpc.folders import SiteFacts
from happyneurons.jobs.spec import Resources

PAD_MIN = 5
"""A batch job must outlast its jobs by this: Balsam's launcher stops two minutes early, and starts after it began."""


@dataclass(frozen=True)
class Shape:
    """Fields of a Balsam job."""

    nodes: int
    ranks_per_node: int
    packing: int
    """How many such jobs share a node."""
    threads_per_core: int
    gpus_per_rank: float
    walltime_min: int


def workers_per_node(resources: Resources, facts: SiteFacts) -> int:
    """Ranks that work which one node can carry; 0: not one."""
    node = facts.node
    limits = [node.cores // resources.threads_per_rank]
    if resources.memory_gb:
        limits.append(int(node.memory_gb / (resources.memory_gb / resources.ranks) + 1e-9))
    if resources.gpus_per_rank:
        limits.append(int(node.gpus / resources.gpus_per_rank + 1e-9))
    return min(limits)


def shape_of(resources: Resources, facts: SiteFacts, longest_min: int) -> Shape:
    """The shape of a job that is not refused. `longest_min`: the longest batch job that it may get into."""
    node, ranks = facts.node, resources.ranks
    per_node = max(1, workers_per_node(resources, facts))
    nodes = math.ceil(ranks / per_node)
    processes = ranks if ranks == 1 else ranks + 1
    if nodes > 1:
        processes = min(processes, nodes * per_node)
    ranks_per_node = math.ceil(processes / nodes)
    workers = ranks if nodes == 1 else ranks_per_node
    cores = workers * resources.threads_per_rank
    gpus = math.ceil(workers * resources.gpus_per_rank - 1e-9)
    shares = [cores / node.cores, (resources.memory_gb or 0) / nodes / node.memory_gb, gpus / max(1, node.gpus)]
    packing = max(1, int(1 / max(shares) + 1e-9)) if facts.balsam.node_packing and nodes == 1 else 1
    # Balsam reserves ranks_per_node × threads_per_rank / threads_per_core cores on a node and waits for ever
    # for more than there are: the ratio makes it what the workers need.
    most = max(1, min(cores, node.cores // packing))
    threads_per_core = max(1, math.ceil(ranks_per_node * resources.threads_per_rank / (most + 0.999)))
    walltime = math.ceil(resources.walltime_min or 0)
    return Shape(
        nodes, ranks_per_node, packing, threads_per_core,
        (gpus + 0.01) / ranks_per_node if gpus else 0.0,  # Balsam rounds ranks × this down
        min(walltime, max(1, longest_min - PAD_MIN)) if walltime else 0,
    )  # fmt: skip


def refuse(resources: Resources, facts: SiteFacts, pool: PoolLimits, site: str) -> str | None:
    """Why no node or queue of the site can ever carry such a job, or None."""
    node = facts.node
    name = f"a node of {site}"
    if resources.threads_per_rank > node.cores:
        return f"needs {resources.threads_per_rank} cores for a rank; {name} has {node.cores}"
    if resources.gpus_per_rank > node.gpus:
        has = f"has {node.gpus}" if node.gpus else "has none"
        return f"needs GPUs: {resources.gpus_per_rank:g} for a rank; {name} {has}"
    if resources.memory_gb and resources.memory_gb / resources.ranks > node.memory_gb:
        for_rank = "" if resources.ranks == 1 else " for a rank"
        need = resources.memory_gb / resources.ranks
        return f"needs {need:g} GB of memory{for_rank}; {name} has {node.memory_gb:g} GB"
    nodes = math.ceil(resources.ranks / workers_per_node(resources, facts))
    most, why = most_nodes(facts, pool)
    if nodes > most:
        return f"needs {resources.cores} cores ({_size(resources, nodes)}); {site} gives at most {most} nodes ({why})"
    longest = longest_min(facts, pool)
    if (resources.walltime_min or 0) > longest:
        return f"needs {resources.walltime_min:g} min of walltime; {site} gives at most {longest} min"
    return None


def _size(resources: Resources, nodes: int) -> str:
    ranks = "1 rank" if resources.ranks == 1 else f"{resources.ranks} ranks"
    return f"{ranks} × {resources.threads_per_rank} threads, {nodes} nodes"


def most_nodes(facts: SiteFacts, pool: PoolLimits) -> tuple[int, str]:
    """Nodes of the largest batch job that a job may get into, and who says so."""
    if not pool.max_nodes:  # asked for by hand: from any queue
        return max(rules.max_nodes for rules in facts.queues.values()), "its largest queue"
    name = pool.queue or facts.default_queue
    rules = facts.queues[name] if name in facts.queues else facts.queues[facts.default_queue]
    limits = [(pool.max_nodes, "pool.max_nodes"), (rules.max_nodes, f"queue {name}")]
    if pool.nodes_per_batch:
        limits.append((max(pool.nodes_per_batch, rules.min_nodes), "pool.nodes_per_batch"))
    return min(limits)


def longest_min(facts: SiteFacts, pool: PoolLimits) -> int:
    """Walltime of the longest batch job that a job may get into, in minutes."""
    if not pool.max_nodes:
        return max(rules.max_walltime_min for rules in facts.queues.values())
    name = pool.queue or facts.default_queue
    rules = facts.queues.get(name) or facts.queues[facts.default_queue]
    return rules.walltime_limit_min(rules.min_nodes)

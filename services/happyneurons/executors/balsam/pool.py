"""The elastic pool: which batch jobs to ask for and which to give back, as work comes and goes.

A pure decision, taken again at each look at the server; who carries it out is `keeper`.
All batch jobs that may take our jobs count as capacity; only those that the pool asked for itself
count against its limits and are ever given back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from happyneurons.executors.balsam.config import PoolLimits
from happyneurons.executors.balsam.records import WAITING, BalsamJob, BatchJob
from happyneurons.executors.balsam.shape import PAD_MIN
from happyneurons.hpc.folders import QueueFacts

EPS = 1e-6
LAUNCHER_STOPS_MIN = 2
"""Balsam's launcher takes nothing more, and ends what it runs, so many minutes before the batch job does."""


@dataclass(frozen=True)
class Request:
    """A batch job to ask for."""

    nodes: int
    walltime_min: int


@dataclass(frozen=True)
class GiveBack:
    """A batch job that nobody needs."""

    batch_job: int
    reason: str


@dataclass(frozen=True)
class Decision:
    actions: tuple[Request | GiveBack, ...] = ()
    idle_since: Mapping[int, float] = field(default_factory=dict)
    """Batch jobs of the pool that nothing needs → since when; to be given to the next decision."""
    held: str = ""
    """Why nothing more is asked for although work waits; empty if nothing stands against it."""


def decide(
    jobs: Iterable[BalsamJob],
    batch_jobs: Iterable[BatchJob],
    *,
    pool: str,
    limits: PoolLimits,
    queue: QueueFacts,
    idle_since: Mapping[int, float],
    now: float,
    hold_until: float = 0.0,
) -> Decision:
    """What to do now.

    `jobs`: ours that are not over. `batch_jobs`: of the site, not over, with the jobs inside them.
    Nothing is asked for before `hold_until` (the scheduler refused the last one).
    """
    jobs = sorted(jobs, key=lambda job: job.id)
    usable = [b for b in batch_jobs if b.live and b.serves(pool)]
    own = [b for b in usable if b.owned_by(pool)]
    needed, unplaced = _place(jobs, [b for b in usable if b.state != "pending_deletion"])

    idle: dict[int, float] = {}
    actions: list[Request | GiveBack] = []
    for b in own:
        if b.state == "pending_deletion" or b.jobs or b.id in needed:
            continue
        idle[b.id] = idle_since.get(b.id, now)
        if now - idle[b.id] >= limits.idle_s:
            actions.append(GiveBack(b.id, f"no work for {now - idle[b.id]:.0f} s"))
    requests, held = _requests(unplaced, own, limits, queue)
    if requests and now < hold_until:
        requests, held = [], f"the scheduler refused the last batch job: tried again in {hold_until - now:.0f} s"
    return Decision((*actions, *requests), idle, held)


def _place(jobs: Sequence[BalsamJob], batch_jobs: Sequence[BatchJob]) -> tuple[set[int], list[BalsamJob]]:
    """Batch jobs that waiting jobs will fill, and the waiting jobs that none has room for."""
    taken = {job.id: job for job in jobs if job.taken}
    room = {b.id: b.nodes - sum(taken[n].node_share for n in b.jobs if n in taken) for b in batch_jobs}
    # Running ones first: they start at once. Then in the order in which they were asked for.
    order = sorted(batch_jobs, key=lambda b: (b.state != "running", b.id))
    needed: set[int] = set()
    unplaced = []
    for job in jobs:
        if job.state not in WAITING or job.taken:
            continue
        for b in order:
            if carries(b, job) and room[b.id] >= job.node_share - EPS:
                room[b.id] -= job.node_share
                needed.add(b.id)
                break
        else:
            unplaced.append(job)
    return needed, unplaced


def carries(batch_job: BatchJob, job: BalsamJob) -> bool:
    """Whether a batch job, were it empty, could take a job: large enough, and with enough time left."""
    left = batch_job.minutes_left if batch_job.minutes_left is not None else batch_job.walltime_min
    return job.nodes <= batch_job.nodes and left > LAUNCHER_STOPS_MIN and job.walltime_min <= left - LAUNCHER_STOPS_MIN


def _requests(
    unplaced: Sequence[BalsamJob], own: Sequence[BatchJob], limits: PoolLimits, queue: QueueFacts
) -> tuple[list[Request], str]:
    """Batch jobs for jobs that no other has room for, oldest first; and what stands against more."""
    spare = limits.max_nodes - sum(b.nodes for b in own)
    slots = limits.max_batch_jobs - len(own)
    queued = queue.max_queued - sum(1 for b in own if b.state != "running")
    largest = max(queue.min_nodes, min(queue.max_nodes, limits.nodes_per_batch or queue.max_nodes))
    found: list[Request] = []
    rest = list(unplaced)
    while rest:
        if limits.max_nodes == 0:
            return found, "the pool may ask for no nodes (pool.max_nodes 0): `hpn site request` does it by hand"
        if slots <= 0:
            return found, f"all {limits.max_batch_jobs} batch jobs are in use (pool.max_batch_jobs)"
        if queued <= 0:
            return found, f"{queue.max_queued} batch jobs are queued, as many as the queue takes"
        most = min(spare, largest)
        # The oldest decides: younger, smaller jobs must not take for ever the nodes that it waits for.
        if max(rest[0].nodes, queue.min_nodes) > most:
            return found, f"all of the pool's {limits.max_nodes} nodes are in use (pool.max_nodes)"
        room, inside, later = float(most), [], []
        for job in rest:
            if job.nodes <= most and job.node_share <= room + EPS:
                room -= job.node_share
                inside.append(job)
            else:
                later.append(job)
        filled = math.ceil(sum(job.node_share for job in inside) - EPS)
        nodes = max(filled, max(job.nodes for job in inside), queue.min_nodes)
        longest = max(job.walltime_min for job in inside)
        walltime = max(limits.walltime_min, longest + PAD_MIN if longest else 0)
        found.append(Request(nodes, min(walltime, queue.walltime_limit_min(nodes))))
        spare, slots, queued, rest = spare - nodes, slots - 1, queued - 1, later
    return found, ""

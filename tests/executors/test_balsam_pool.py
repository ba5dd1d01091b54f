"""What the elastic pool decides, and how jobs are laid on nodes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from happyneurons.executors.balsam.config import PoolLimits
from happyneurons.executors.balsam.explain import AGENT_SILENT_S, View, explain_job
from happyneurons.executors.balsam.pool import Decision, GiveBack, Request, carries, decide
from happyneurons.executors.balsam.records import BalsamJob, BatchJob, now_utc, pool_tags
from happyneurons.executors.balsam.shape import PAD_MIN, longest_min, refuse, shape_of
from happyneurons.hpc.folders import QueueFacts, SiteFacts
from happyneurons.jobs.spec import Resources

POOL = "theta"
QUEUE = QueueFacts(min_nodes=1, max_nodes=64, max_walltime_min=360, max_queued=10)
LIMITS = PoolLimits(max_nodes=16, max_batch_jobs=4, walltime_min=60, idle_s=100)


def job(number: int, state: str = "PREPROCESSED", nodes: int = 1, packing: int = 1, **fields: Any) -> BalsamJob:
    values = {"walltime_min": 0, "batch_job": None, "session": None} | fields
    return BalsamJob(number, f"t{number}", state, nodes, packing, updated=now_utc(), **values)


def batch(number: int, state: str = "running", nodes: int = 1, left: float = 60, **fields: Any) -> BatchJob:
    values: dict[str, Any] = {"filter_tags": pool_tags(POOL), "walltime_min": 60} | fields
    return BatchJob(
        number, state, nodes, "debug", "p", minutes_left=left if state == "running" else None, scheduler_id=7, **values
    )


def look(jobs: list[BalsamJob], batch_jobs: list[BatchJob], now: float = 1000, **more: Any) -> Decision:
    values: dict[str, Any] = {"limits": LIMITS, "queue": QUEUE, "idle_since": {}} | more
    return decide(jobs, batch_jobs, pool=POOL, now=now, **values)


def requests(decision: Decision) -> list[Request]:
    return [action for action in decision.actions if isinstance(action, Request)]


def given_back(decision: Decision) -> list[int]:
    return [action.batch_job for action in decision.actions if isinstance(action, GiveBack)]


def test_asks_for_what_the_work_needs() -> None:
    assert requests(look([], [])) == []
    assert requests(look([job(1)], [])) == [Request(1, 60)]
    assert requests(look([job(n, packing=64) for n in range(130)], [])) == [Request(3, 60)]
    assert requests(look([job(1, nodes=8), job(2, nodes=4), job(3)], [])) == [Request(13, 60)]
    assert requests(look([job(n) for n in range(100)], [])) == [Request(16, 60)], "no more than the limit"


def test_asks_no_more_while_what_is_there_will_do() -> None:
    assert requests(look([job(1)], [batch(5)])) == []
    assert requests(look([job(1)], [batch(5, "queued")])) == []
    by_hand = batch(5, "queued", filter_tags=pool_tags(POOL, by_hand=True))
    assert requests(look([job(1)], [by_hand])) == []
    assert requests(look([job(1)], [replace(by_hand, filter_tags={})])) == [], "one that takes all jobs"
    assert requests(look([job(1)], [replace(by_hand, filter_tags=pool_tags("other"))])) == [Request(1, 60)]
    assert requests(look([job(1)], [batch(5, "pending_deletion")])) == [Request(1, 60)]
    busy = [job(1, "RUNNING", batch_job=5), job(2)]
    assert requests(look(busy, [batch(5, jobs=(1,))])) == [Request(1, 60)], "it is full"
    assert requests(look([job(1, walltime_min=30)], [batch(5, left=20)])) == [Request(1, 60)], "too late for it"
    assert requests(look([job(1, nodes=3)], [batch(5, nodes=2)])) == [Request(3, 60)], "too large for it"


def test_walltimes() -> None:
    assert requests(look([job(1, walltime_min=90)], [])) == [Request(1, 90 + PAD_MIN)]
    assert requests(look([job(1, walltime_min=355)], [])) == [Request(1, 360)]


def test_what_stands_against_more_is_said() -> None:
    def held(decision: Decision) -> str:
        assert requests(decision) == []
        return decision.held

    full = [batch(5, nodes=16, jobs=(1,))]
    jobs = [job(1, "RUNNING", nodes=16, batch_job=5), job(2)]
    assert "16 nodes are in use (pool.max_nodes)" in held(look(jobs, full))
    four = [batch(n, left=1) for n in range(4)]
    assert "all 4 batch jobs are in use" in held(look([job(1)], four))
    assert "pool.max_nodes 0" in held(look([job(1)], [], limits=PoolLimits()))
    queue = QUEUE.model_copy(update={"max_queued": 1})
    assert "as many as the queue takes" in held(look([job(1, nodes=2)], [batch(5, "queued")], queue=queue))
    assert "tried again in 50 s" in held(look([job(1)], [], hold_until=1050))
    assert requests(look([job(1)], [], hold_until=1000)) == [Request(1, 60)]


def test_rules_of_the_queue() -> None:
    prod = QUEUE.model_copy(update={"min_nodes": 10, "max_nodes": 12})
    assert requests(look([job(1)], [], queue=prod)) == [Request(10, 60)]
    large = [job(n) for n in range(30)]
    limits = LIMITS.model_copy(update={"max_nodes": 24})
    assert requests(look(large, [], queue=prod, limits=limits)) == [Request(12, 60), Request(12, 60)]
    capped = LIMITS.model_copy(update={"nodes_per_batch": 3})
    assert [r.nodes for r in requests(look(large, [], limits=capped))] == [3, 3, 3, 3]


def test_an_old_large_job_is_not_starved_by_small_ones() -> None:
    decision = look([job(1, nodes=16), *(job(n) for n in range(2, 9))], [batch(5, nodes=4, left=2)])
    assert requests(decision) == []
    assert "in use" in decision.held


def test_gives_back_what_nobody_needs_for_a_while() -> None:
    first = look([], [batch(5)])
    assert given_back(first) == []
    assert first.idle_since == {5: 1000}
    assert given_back(look([], [batch(5)], now=1099, idle_since=first.idle_since)) == []
    later = {"now": 1100, "idle_since": first.idle_since}
    assert given_back(look([], [batch(5)], **later)) == [5]
    assert given_back(look([], [batch(5, "queued")], **later)) == [5]
    assert given_back(look([], [batch(5, "pending_deletion")], **later)) == []
    assert given_back(look([], [batch(5, filter_tags=pool_tags(POOL, by_hand=True))], **later)) == []
    worked = look([job(1, "RUNNING", batch_job=5)], [batch(5, jobs=(1,))], now=1050, idle_since=first.idle_since)
    assert worked.idle_since == {}, "the time begins anew"


states = st.sampled_from(["STAGED_IN", "PREPROCESSED", "RUNNING", "RUN_DONE"])
jobs_strategy = st.lists(
    st.builds(
        lambda state, nodes, packing, minutes: job(0, state, nodes, packing if nodes == 1 else 1, walltime_min=minutes),
        states, st.integers(1, 16), st.integers(1, 64), st.sampled_from([0, 10, 60, 300]),
    ),
    max_size=40,
)  # fmt: skip
batch_jobs_strategy = st.lists(
    st.builds(
        lambda state, nodes, left, tags: batch(0, state, nodes, left, filter_tags=tags),
        st.sampled_from(["pending_submission", "queued", "running", "pending_deletion"]), st.integers(1, 8),
        st.sampled_from([1.0, 5.0, 59.0]),
        st.sampled_from([pool_tags(POOL), pool_tags(POOL), pool_tags(POOL, by_hand=True), {}, pool_tags("other")]),
    ),
    max_size=4,
)  # fmt: skip
limits_strategy = st.builds(
    PoolLimits, max_nodes=st.integers(0, 40), max_batch_jobs=st.integers(1, 5), walltime_min=st.integers(5, 120),
    nodes_per_batch=st.none() | st.integers(1, 8), idle_s=st.sampled_from([0.0, 50.0]),
)  # fmt: skip
queue_strategy = st.builds(
    lambda low, more: QueueFacts(min_nodes=low, max_nodes=low + more, max_walltime_min=120, max_queued=3),
    st.integers(1, 12), st.integers(0, 20),
)  # fmt: skip


@given(jobs_strategy, batch_jobs_strategy, limits_strategy, queue_strategy, st.data())
def test_limits_hold_and_work_is_never_interrupted(
    jobs: list[BalsamJob], batch_jobs: list[BatchJob], limits: PoolLimits, queue: QueueFacts, data: st.DataObject
) -> None:
    batch_jobs = [replace(b, id=100 + n) for n, b in enumerate(batch_jobs)]
    placed: dict[int, list[int]] = {b.id: [] for b in batch_jobs}
    running = [b.id for b in batch_jobs if b.state == "running"]
    for n, j in enumerate(jobs):
        inside = data.draw(st.sampled_from(running)) if j.running and running else None
        jobs[n] = replace(j, id=n + 1, batch_job=inside)
        if inside is not None:
            placed[inside].append(n + 1)
    batch_jobs = [replace(b, jobs=tuple(placed[b.id])) for b in batch_jobs]
    decision = look(jobs, batch_jobs, limits=limits, queue=queue, idle_since={b.id: 0.0 for b in batch_jobs})

    own = [b for b in batch_jobs if b.owned_by(POOL)]
    asked = requests(decision)
    if asked:
        assert sum(b.nodes for b in own) + sum(r.nodes for r in asked) <= limits.max_nodes
        assert len(own) + len(asked) <= limits.max_batch_jobs
        assert sum(b.state != "running" for b in own) + len(asked) <= queue.max_queued
    for request in asked:
        assert queue.min_nodes <= request.nodes <= queue.max_nodes
        assert 1 <= request.walltime_min <= queue.max_walltime_min
    waiting = [j for j in jobs if j.state in ("STAGED_IN", "PREPROCESSED")]
    assert sum(r.nodes for r in asked) <= max(math.ceil(sum(j.node_share for j in waiting)), 0) + sum(
        max(queue.min_nodes, max((j.nodes for j in waiting), default=0)) for _ in asked
    ), "sized by demand"
    for number in given_back(decision):
        found = next(b for b in batch_jobs if b.id == number)
        assert found in own
        assert not found.jobs
        assert found.state != "pending_deletion"
    if waiting and not asked and not decision.held:
        assert all(any(carries(b, j) for b in batch_jobs if b.serves(POOL)) for j in waiting), "nobody is forgotten"

    # What was asked for is there at the next look: nothing more is asked for, and none of it is given back.
    granted = [batch(200 + n, "queued", r.nodes, walltime_min=r.walltime_min) for n, r in enumerate(asked)]
    kept = [b for b in batch_jobs if b.id not in given_back(decision)]
    again = look(jobs, [*kept, *granted], limits=limits, queue=queue, idle_since=decision.idle_since, now=1001)
    carried = [j for j in waiting if any(carries(b, j) for b in granted)]
    if carried and len(carried) == len(waiting) and not decision.held:
        assert requests(again) == [], "no flapping"
    assert not {b.id for b in granted} & set(given_back(again)) or limits.idle_s == 0


NODE = {"cores": 64, "memory_gb": 192, "gpus": 4}


def facts(*, packing: bool = True, **node: Any) -> SiteFacts:
    return SiteFacts.model_validate(
        {
            "title": "t", "scheduler": "pbs", "node": NODE | node, "default_queue": "prod",
            "queues": {"prod": {"min_nodes": 2, "max_nodes": 8, "max_walltime_min": 360}},
            "balsam": {"compute_node": "n", "mpi_app_launcher": "m", "scheduler_class": "s", "node_packing": packing},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "nodes", "ranks_per_node", "packing"),
    [
        ({}, 1, 1, 64),
        ({"ranks": 64}, 1, 65, 1),  # the coordinator sleeps: it takes no core
        ({"ranks": 32}, 1, 33, 2),
        ({"ranks": 128}, 2, 64, 1),  # one worker less rather than a node more
        ({"ranks": 100}, 2, 51, 1),
        ({"ranks": 4, "threads_per_rank": 16}, 1, 5, 1),
        ({"ranks": 8, "threads_per_rank": 16}, 2, 4, 1),
        ({"threads_per_rank": 64}, 1, 1, 1),
        ({"memory_gb": 96}, 1, 1, 2),
        ({"ranks": 10, "memory_gb": 480}, 3, 4, 1),  # 48 GB a rank: four on a node
        ({"gpus_per_rank": 1}, 1, 1, 4),
        ({"ranks": 4, "gpus_per_rank": 1}, 1, 5, 1),
        ({"ranks": 8, "gpus_per_rank": 0.5}, 1, 9, 1),
    ],
)
def test_jobs_are_laid_on_nodes(resources: dict[str, Any], nodes: int, ranks_per_node: int, packing: int) -> None:
    shape = shape_of(Resources.model_validate(resources), facts(), 360)
    assert (shape.nodes, shape.ranks_per_node, shape.packing) == (nodes, ranks_per_node, packing)
    assert shape_of(Resources.model_validate(resources), facts(packing=False), 360).packing == 1


@given(
    st.integers(1, 600), st.integers(1, 64), st.none() | st.floats(1, 2000), st.sampled_from([0, 0.25, 1, 2]),
    st.booleans(),
)  # fmt: skip
def test_balsam_never_waits_for_more_than_a_node_has(
    ranks: int, threads: int, memory_gb: float | None, gpus: float, packs: bool
) -> None:
    resources = Resources(ranks=ranks, threads_per_rank=threads, memory_gb=memory_gb, gpus_per_rank=gpus)
    site = facts(packing=packs)
    if refuse(resources, site, PoolLimits(), "polaris"):
        return
    shape = shape_of(resources, site, 360)
    assert shape.nodes <= 8
    workers = shape.nodes * shape.ranks_per_node - (shape.nodes * shape.ranks_per_node > 1)
    assert workers >= ranks or (shape.nodes > 1 and workers == ranks - 1)
    assert (shape.nodes == 1) or shape.ranks_per_node * threads <= 64
    if shape.nodes == 1:  # what Balsam's node manager reserves
        reserved = max(1, shape.ranks_per_node * threads // shape.threads_per_core)
        assert reserved * shape.packing <= 64
        given = int(shape.ranks_per_node * shape.gpus_per_rank)
        assert given * shape.packing <= 4
        assert given >= ranks * gpus - 1e-9
        assert (memory_gb or 0) * shape.packing <= 192 * (1 + 1e-6)


def test_refusals_give_the_numbers() -> None:
    def why(pool: PoolLimits | None = None, **fields: Any) -> str:
        return refuse(Resources(**fields), facts(), pool or PoolLimits(), "polaris") or ""

    assert why() == ""
    assert why(threads_per_rank=65) == "needs 65 cores for a rank; a node of polaris has 64"
    assert why(memory_gb=200) == "needs 200 GB of memory; a node of polaris has 192 GB"
    assert why(ranks=2, memory_gb=400) == "needs 200 GB of memory for a rank; a node of polaris has 192 GB"
    assert why(gpus_per_rank=5) == "needs GPUs: 5 for a rank; a node of polaris has 4"
    assert "needs 576 cores (576 ranks × 1 threads, 9 nodes); polaris gives at most 8 nodes" in why(ranks=576)
    assert "at most 2 nodes (pool.max_nodes)" in why(PoolLimits(max_nodes=2), ranks=129)
    assert "at most 2 nodes (pool.nodes_per_batch)" in why(PoolLimits(max_nodes=9, nodes_per_batch=1), ranks=129)
    assert why(walltime_min=361) == "needs 361 min of walltime; polaris gives at most 360 min"


def test_a_batch_job_outlasts_the_jobs_it_was_asked_for() -> None:
    longest = longest_min(facts(), PoolLimits(max_nodes=8))
    shape = shape_of(Resources(walltime_min=360), facts(), longest)
    queue = facts().queues["prod"]
    found = requests(look([job(1, walltime_min=shape.walltime_min)], [], queue=queue))
    assert carries(batch(5, "queued", 2, walltime_min=found[0].walltime_min), job(1, walltime_min=shape.walltime_min))


def test_explanations() -> None:
    path = {"site_path": "/site"}
    me = job(3)
    assert "no batch job is there yet" in explain_job(me, 1, View())
    assert "pool.max_nodes 0" in explain_job(me, 1, View(pool_message="pool.max_nodes 0"))
    queued = {5: replace(batch(5, "queued"), queued_min=12.0)}
    assert "which is in queue debug of the scheduler for 12 min" in explain_job(me, 1, View(batch_jobs=queued))
    asked = {5: batch(5, "pending_submission")}
    assert "about to be handed over" in explain_job(me, 1, View(batch_jobs=asked))
    silent = View(batch_jobs=asked, agent_silent_s=AGENT_SILENT_S + 120, **path)
    assert "not reported for 5 min: start it again (`/site/hpn-site start`" in explain_job(me, 1, silent)
    running = View(batch_jobs={5: batch(5, nodes=2)})
    assert "5 (scheduler: 7) has room" in explain_job(me, 1, running)
    inside = job(1, "RUNNING", nodes=2, batch_job=5)
    full = replace(running, jobs=[inside, job(2), me])
    assert "2 of 2 nodes of batch job 5 (scheduler: 7) are in use; 1 jobs ahead" in explain_job(me, 1, full)
    assert "runs in batch job 5 (scheduler: 7), 60 of 60 min left" in explain_job(inside, 1, full)
    assert "has 2 nodes, the job needs 4" in explain_job(job(3, nodes=4), 1, running)
    late = View(batch_jobs={5: batch(5, left=10)})
    assert "has 10 min left, the job needs 30 min" in explain_job(job(3, walltime_min=30), 1, late)
    staged = job(3, "STAGED_IN")
    assert "being prepared by the site's agent (STAGED_IN)" in explain_job(staged, 1, running)
    assert "stuck in STAGED_IN for 90 s although the site's agent lives" in explain_job(staged, 90, running)
    assert "start it again" in explain_job(staged, 90, silent)

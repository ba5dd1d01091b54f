"""Metrics of the work that jobs did: tasks, voxels, bytes, tissue, and what their ranks met with.

Nobody can scrape compute nodes. Ranks write what they did into their job's progress, and at its end
into its manifest or into the attempt's end; the orchestrator reads it there.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric

from happyneurons.errors import HappyError
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.runlog import Event
from happyneurons.orchestrator.state import JobPhase, JobStatus
from happyneurons.rpc.metric_families import Buckets, counter, gauge, store_families
from happyneurons.store.artifacts import Manifest, load_manifest
from happyneurons.store.telemetry import OPERATIONS, WIDTH, Counts
from happyneurons.worker.progress import TASK_BOUNDS_S

CUBIC_M_PER_CUBIC_NM = 1e-27

Figures = dict[str, float]


@dataclass
class _Seen:
    """Figures that only grow: what they were at first, which another process counted, and what they are."""

    stage: str
    first: Figures
    last: Figures

    def take(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.last[name] = max(self.last.get(name, 0.0), value)

    def gain(self) -> Figures:
        return {name: value - self.first.get(name, 0.0) for name, value in self.last.items()}


@dataclass
class _Run:
    """What is known of a run in memory."""

    jobs: dict[str, _Seen] = field(default_factory=dict)
    """Work of a job, over all its attempts: what an attempt finds done counts once."""
    attempts: dict[str, tuple[int, _Seen]] = field(default_factory=dict)
    """(number, figures) of a job's attempt at work."""
    began: dict[str, tuple[int, float]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    """Jobs whose manifest was read: manifests never change."""


class WorkMetrics:
    """Counters of work since this process began to count."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = defaultdict(_Run)
        self._jobs_before: dict[str, Figures] = defaultdict(dict)
        self._attempts_before: dict[str, Figures] = defaultdict(dict)
        self._stages: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """A new scrape."""
        self._memory: dict[str, float] = {}

    def count(self, driver: RunDriver, event: Event, since: float) -> None:
        """Take over an event. since: what happened before was counted by another process."""
        if event.subject not in driver.status.jobs:
            return
        run, stage = self._runs[driver.status.run_id], driver.status.jobs[event.subject].job.stage
        if event.type == "job_started":
            run.began[event.subject] = (event.data["attempt"], event.data["began"])
        elif event.type in ("job_failed", "job_cancelled", "job_interrupted"):
            telemetry = event.data.get("telemetry") or {}
            if event.time >= since and "work" in telemetry:
                self._take_work(run, event.subject, driver.status.jobs[event.subject], telemetry["work"], since)
            self._attempt_over(run, event.subject, stage, telemetry, event.time >= since)

    def see(self, driver: RunDriver, since: float) -> None:
        """What a run's jobs have done by now."""
        run = self._runs[driver.status.run_id]
        for name, job in driver.status.jobs.items():
            self._stages.add(job.job.stage)
            if job.reused or name in run.settled:
                continue
            if job.phase is JobPhase.SUCCEEDED:
                with contextlib.suppress(HappyError):  # the store is away: the next scrape will know
                    self._settle(driver, run, name, job, since)
            elif progress := driver.progress.get(name):
                self._look(run, name, job, progress, since)

    def _look(self, run: _Run, name: str, job: JobStatus, progress: Mapping[str, Any], since: float) -> None:
        """Progress of an attempt at work."""
        telemetry = progress.get("telemetry")
        if not telemetry:
            return  # of an image older than this
        self._take_work(run, name, job, telemetry["work"], since)
        stage = job.job.stage
        self._memory[stage] = max(self._memory.get(stage, 0.0), telemetry["peak_memory_bytes"])
        figures = flat(telemetry)
        number, began = run.began.get(name, (job.attempt, since))
        known = run.attempts.get(name)
        if known is None or known[0] != number:
            known = run.attempts[name] = (number, _Seen(stage, dict(figures) if began < since else {}, {}))
        known[1].take(figures)

    def _take_work(self, run: _Run, name: str, job: JobStatus, work: Mapping[str, float], since: float) -> None:
        seen = run.jobs.get(name)
        if seen is None:
            before_us = 0.0 < job.start_time < since
            seen = run.jobs[name] = _Seen(job.job.stage, dict(work) if before_us else {}, {})
        seen.take(work)

    def _settle(self, driver: RunDriver, run: _Run, name: str, job: JobStatus, since: float) -> None:
        """A job that succeeded: its manifest says what was done."""
        if job.end_time < since:
            run.settled.add(name)
            return
        manifest = load_manifest(driver.store, job.key)
        run.settled.add(name)
        if manifest is None:
            return
        made = manifest.provenance
        work = {
            "done": float(made.get("tasks_computed", 0) + made.get("tasks_resumed", 0)),
            "quarantined": float(len(made.get("tasks_quarantined", ()))),
            "voxels": float(made.get("voxels", 0)),
            "bytes": float(made.get("bytes", 0)),
        }
        self._take_work(run, name, job, work, since)
        run.jobs[name].last["cubic_m"] = produced_cubic_m(manifest)
        self._attempt_over(run, name, job.job.stage, made.get("telemetry"), True)

    def _attempt_over(
        self, run: _Run, name: str, stage: str, telemetry: Mapping[str, Any] | None, counts: bool
    ) -> None:
        """An attempt ended; what it said last is added to what is kept."""
        known = run.attempts.pop(name, None)
        run.began.pop(name, None)
        if not counts:
            return
        seen = known[1] if known else _Seen(stage, {}, {})
        if telemetry:
            seen.take(flat(telemetry))
        _sum(self._attempts_before[stage], seen.gain())

    def forget(self, run_id: str) -> None:
        """A run left the memory: what it did stays counted."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        for seen in run.jobs.values():
            _sum(self._jobs_before[seen.stage], seen.gain())
        for _, seen in run.attempts.values():
            _sum(self._attempts_before[seen.stage], seen.gain())

    # --- how it is told --------------------------------------------------------------------------

    def families(self) -> Iterator[Metric]:
        work, met = self._totals()
        stages = sorted(self._stages)
        yield counter(
            "happyneurons_tasks", "Tasks of jobs", ["stage", "outcome"],
            {(s, o): work[s].get(o, 0.0) for s in stages for o in ("done", "quarantined")},
        )  # fmt: skip
        for figure in ("voxels", "bytes"):
            values = {(s,): work[s].get(figure, 0.0) for s in stages}
            yield counter(f"happyneurons_{figure}", f"{figure.capitalize()} that tasks made", ["stage"], values)
        yield counter(
            "happyneurons_produced_cubic_meters",
            "Tissue in the outputs of finished jobs, by their bounds and voxel size",
            ["stage"], {(s,): work[s].get("cubic_m", 0.0) for s in stages},
        )  # fmt: skip
        yield counter(
            "happyneurons_task_failures", "Tries of tasks that failed, by whose failure it was", ["stage", "kind"],
            {
                (s, kind): met[s].get(name, 0.0)
                for s in stages
                for kind, name in (("task", "failed"), ("infrastructure", "interrupted"))
            },
        )  # fmt: skip
        seconds = Buckets(TASK_BOUNDS_S)
        for s in stages:
            classes = [met[s].get(f"durations/{i}", 0.0) for i in range(len(TASK_BOUNDS_S) + 1)]
            seconds.add((s,), classes, met[s].get("task_seconds", 0.0))
        yield seconds.family("happyneurons_task_seconds", "Duration of tasks that were done", ["stage"])
        yield gauge(
            "happyneurons_rank_memory_peak_bytes", "Most memory that one rank of the jobs at work has had", ["stage"],
            {(s,): value for s, value in self._memory.items()},
        )  # fmt: skip
        calls: dict[tuple[str, ...], Counts] = {(s,): _store_counts(met[s]) for s in stages}
        yield from store_families("happyneurons_rank_store_call", "ranks of jobs", calls, ["stage"])

    def _totals(self) -> tuple[dict[str, Figures], dict[str, Figures]]:
        work, met = (
            defaultdict(dict, {s: dict(f) for s, f in before.items()})
            for before in (self._jobs_before, self._attempts_before)
        )
        for run in self._runs.values():
            for seen in run.jobs.values():
                _sum(work[seen.stage], seen.gain())
            for _, seen in run.attempts.values():
                _sum(met[seen.stage], seen.gain())
        return work, met


def produced_cubic_m(manifest: Manifest) -> float:
    """Volume of the largest output that has bounds and a voxel size, m³; 0 if none has."""
    volumes = [0.0]
    for output in manifest.outputs.values():
        if output.bounds is not None and output.voxel_size_nm_xyz is not None:
            z, y, x = output.bounds.shape_zyx
            a, b, c = output.voxel_size_nm_xyz
            volumes.append(z * y * x * a * b * c * CUBIC_M_PER_CUBIC_NM)
    return max(volumes)


def flat(telemetry: Mapping[str, Any]) -> Figures:
    """An attempt's telemetry (happyneurons.worker.progress) as figures that can be added, its peaks left out."""
    figures = {name: float(telemetry.get(name, 0)) for name in ("task_seconds", "failed", "interrupted")}
    durations = telemetry.get("durations", ())
    if len(durations) == len(TASK_BOUNDS_S) + 1:
        figures |= {f"durations/{i}": float(n) for i, n in enumerate(durations)}
    for operation, row in telemetry.get("store", {}).items():
        if operation not in OPERATIONS or len(row) != WIDTH:
            continue  # of another version
        figures |= {f"store/{operation}/{i}": float(n) for i, n in enumerate(row)}
    return figures


def _store_counts(figures: Figures) -> Counts:
    counts: Counts = {}
    for name in sorted((n for n in figures if n.startswith("store/")), key=lambda n: (n.split("/")[1], _index(n))):
        counts.setdefault(name.split("/")[1], []).append(figures[name])
    return counts


def _index(name: str) -> int:
    return int(name.rsplit("/", 1)[1])


def _sum(total: Figures, part: Mapping[str, float]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value

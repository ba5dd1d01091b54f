"""The result of a sweep as a table: a row for each combination of values, its run time and its metrics.

As Table 1 of the HAPPYNeurons paper: what each set of parameters costs, and how good its result is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from happyneurons.client.plain import plain, short
from happyneurons.v1 import pipelines_pb2


@dataclass(frozen=True)
class SweepTable:
    """All variants of one swept job. Cells are numbers, texts, or None where nothing is known (yet).

    `columns`: the swept parameters (`spacing_px`; those of an earlier job as `montage.spacing_px`), state,
    seconds, core_hours, then metrics. `seconds` counts from the first attempt's begin to the result.
    """

    job: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def to_csv(self) -> str:
        """The table with a header line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if cell is None else cell for cell in row] for row in self.rows)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        return {"job": self.job, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


def sweep_tables(run: pipelines_pb2.Run) -> list[SweepTable]:
    """A table for each job of which the run has several variants, in the run's order."""
    variants: dict[str, list[pipelines_pb2.RunJob]] = {}
    for job in run.jobs:
        variants.setdefault(_base(job.name), []).append(job)
    params = {job.name: dict(plain(job.job.spec.params)) for job in run.jobs}
    own_axes = {
        base: _differing({job.name: params[job.name] for job in jobs})
        for base, jobs in variants.items()
        if len(jobs) > 1
    }
    by_name = {job.name: job for job in run.jobs}
    points: dict[str, dict[str, Any]] = {}

    def point(name: str) -> dict[str, Any]:
        """Swept values of a job and of those it depends on: `JOB.PARAMETER` → value."""
        if name not in points:
            base = _base(name)
            found: dict[str, Any] = {}
            for need in by_name[name].needs:
                if need in by_name:
                    found |= point(need)
            found |= {f"{base}.{key}": params[name].get(key) for key in own_axes.get(base, ())}
            points[name] = found
        return points[name]

    tables = []
    for base, jobs in variants.items():
        axes = list(dict.fromkeys(axis for job in jobs for axis in point(job.name)))
        if len(jobs) < 2 or not axes:
            continue
        metrics = list(dict.fromkeys(name for job in jobs for name in sorted(job.job.metrics)))
        rows = [
            (
                *(_cell(point(job.name).get(axis)) for axis in axes), short(job.job, "state"), *_cost(job),
                *(job.job.metrics.get(m) for m in metrics),
            )
            for job in jobs
        ]  # fmt: skip
        names = [axis.removeprefix(f"{base}.") for axis in axes]
        tables.append(SweepTable(base, (*names, "state", "seconds", "core_hours", *metrics), tuple(rows)))
    return tables


def _base(name: str) -> str:
    return name.partition("[")[0]


def _differing(params: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Parameters that are not the same in all variants."""
    keys = dict.fromkeys(key for values in params.values() for key in values)
    texts = {key: {json.dumps(values.get(key), sort_keys=True) for values in params.values()} for key in keys}
    return [key for key in keys if len(texts[key]) > 1]


def _cost(job: pipelines_pb2.RunJob) -> tuple[float | None, float | None]:
    """(seconds, core hours) of a finished job that was computed in this run."""
    message = job.job
    if message.reused or not (message.HasField("start_time") and message.HasField("end_time")):
        return None, None
    seconds = (message.end_time.ToMilliseconds() - message.start_time.ToMilliseconds()) / 1000
    resources = message.spec.resources
    cores = max(1, resources.ranks) * max(1, resources.threads_per_rank)
    return seconds, round(seconds * cores / 3600, 6)


def _cell(value: Any) -> Any:
    """Settings by their names where they have some, else as JSON; numbers without a needless fraction
    (protobuf knows floats only)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    parts = value if isinstance(value, list) else [value]
    if parts and all(isinstance(part, dict) and "name" in part for part in parts):
        return "+".join(str(part["name"]) for part in parts)
    return json.dumps(value) if isinstance(value, (list, dict)) else value

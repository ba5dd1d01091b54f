"""Sweeps: a job with lists of values becomes one job for each combination."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from happyneurons.orchestrator.graph import PipelineGate, PipelineJob, reference

Point = dict[tuple[str, str], Any]
"""A point of a sweep: (job, parameter) → value."""


class TooManyJobsError(Exception):
    """Its sweep would make more jobs than a pipeline may have."""

    def __init__(self, job: str, most: int) -> None:
        super().__init__(job, most)
        self.job, self.most = job, most


def expand_sweeps(
    jobs: Mapping[str, PipelineJob],
    gates: Mapping[str, PipelineGate],
    sweeps: Mapping[str, Mapping[str, list[Any]]],
    order: Sequence[str],
    most_jobs: int,
) -> tuple[dict[str, PipelineJob], dict[str, PipelineGate]]:
    """One job for each combination of swept values; what depends on a swept job is multiplied too.

    A gate after swept jobs judges all of them and stays one gate. Raises TooManyJobsError before they are made.
    """
    count = 0
    variants: dict[str, list[tuple[Point, PipelineJob]]] = {}
    for name in (n for n in order if n in jobs):
        job = jobs[name]
        axes: dict[tuple[str, str], list[Any]] = {}
        for _, other, _ in job.references():
            for point, _ in variants[other]:
                for axis, value in point.items():
                    known = axes.setdefault(axis, [])
                    if value not in known:
                        known.append(value)
        axes |= {(name, key): list(values) for key, values in sweeps.get(name, {}).items()}
        count += math.prod(len(values) for values in axes.values())
        if count > most_jobs:
            raise TooManyJobsError(name, most_jobs)
        variants[name] = []
        labelled = [list(zip(values, _labels(values), strict=True)) for values in axes.values()]
        for choice in itertools.product(*labelled):
            point = dict(zip(axes, (value for value, _ in choice), strict=True))
            label = f"{name}[{','.join(label for _, label in choice)}]" if axes else name
            own = {key: value for (owner, key), value in point.items() if owner == name}
            inputs = {k: tuple(_variant_reference(u, point, variants) for u in uris) for k, uris in job.inputs.items()}
            needs = tuple(v.name for n in job.needs if n in variants for _, v in variants[n])
            gates_needed = tuple(n for n in job.needs if n in gates)
            changed = replace(job, name=label, inputs=inputs, params={**job.params, **own}, needs=needs + gates_needed)
            variants[name].append((point, changed))
    expanded = {v.name: v for found in variants.values() for _, v in found}
    grown = {g.name: replace(g, after=tuple(v.name for n in g.after for _, v in variants[n])) for g in gates.values()}
    return expanded, grown


def _variant_reference(uri: str, point: Point, variants: Mapping[str, list[tuple[Point, PipelineJob]]]) -> str:
    match = reference(uri)
    if match is None:
        return uri
    for other_point, job in variants[match[1]]:
        if all(point.get(axis) == value for axis, value in other_point.items()):
            return f"{job.name}.{match[2]}"
    raise AssertionError(f"no variant of {match[1]} at {point}")


def _labels(values: Sequence[Any]) -> list[str]:
    """Values inside jobs' names, no two alike."""
    labels = [_label(value) for value in values]
    return [
        label if labels.count(label) == 1 else f"{label}-{labels[:i].count(label) + 1}"
        for i, label in enumerate(labels)
    ]


def _label(value: Any) -> str:
    """A value inside a job's name: short, without what references and paths are made of.

    Settings that have a name go by it, and lists by those of their parts.
    """
    if isinstance(value, dict):
        value = value.get("name", "set")
    if isinstance(value, list):
        return "+".join(_label(part) for part in value)[:40]
    return "".join(c if c.isalnum() or c in "._-+" else "_" for c in str(value))[:40]

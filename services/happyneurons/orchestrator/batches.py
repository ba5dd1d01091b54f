"""Open runs: jobs with `each: batch` are templates, made anew for each batch of sections that arrives.

A template `montage` becomes `montage[0001]`, `montage[0002]`, …; templates refer to templates of the
same batch. Ordinary jobs and gates that refer to a template wait for all batches: once the
acquisition has ended, `montage.stack` is the list `montage[0001].stack, montage[0002].stack, …`.
Everything here is a function of the pipeline and the batches, so a replayed log gives the same graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from happyneurons.errors import UserError
from happyneurons.orchestrator.conditions import metric_names
from happyneurons.orchestrator.graph import Acquisition, Pipeline, PipelineGate, PipelineJob, reference
from happyneurons.stages import load_stage

BATCH = "batch"
LARGEST_BATCH = 10_000
LONGEST_WAIT_S = 7 * 24 * 3600.0

Complain = Callable[[tuple[str, ...], str], None]


def instance_name(template: str, batch: int) -> str:
    """Name of a template's job for a batch: `montage[0003]`."""
    return f"{template}[{batch:04d}]"


# --- checking ------------------------------------------------------------------------------------


def read_acquisition(top: Mapping[str, Any], value: Any, complain: Complain) -> Acquisition | None:
    """The field `acquisition` of a pipeline, its parameters filled in; None if it has none."""
    if "acquisition" not in top:
        return None
    path = ("acquisition",)
    if not isinstance(value, dict):
        complain(path, "expected {batch: SECTIONS, wait_s: SECONDS}")
        return None
    for key in value:
        if key not in ("batch", "wait_s"):
            complain((*path, key), "no such field; there are batch, wait_s")
    batch, wait_s = value.get("batch", 1), value.get("wait_s", 60)
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= LARGEST_BATCH:
        complain((*path, "batch"), f"expected a number of sections, 1 to {LARGEST_BATCH}")
        batch = 1
    number = isinstance(wait_s, (int, float)) and not isinstance(wait_s, bool)
    if not number or not math.isfinite(wait_s) or not 0 <= wait_s <= LONGEST_WAIT_S:
        complain((*path, "wait_s"), f"expected seconds, 0 to {LONGEST_WAIT_S:.0f}")
        wait_s = 60
    return Acquisition(batch, float(wait_s))


def check_each(
    jobs: Mapping[str, PipelineJob],
    gates: Mapping[str, PipelineGate],
    sweeps: Mapping[str, Any],
    acquisition: Acquisition | None,
    complain: Complain,
) -> None:
    """Complain of whatever is wrong with jobs for each batch."""
    each = {name for name, job in jobs.items() if job.each}
    if acquisition is not None and not each:
        complain(("acquisition",), "no job has `each: batch`: nothing would take the sections")
    late, swept = _followers(jobs, gates, each) - each, _followers(jobs, gates, set(sweeps)) | set(sweeps)
    for name in sorted(each):
        path = ("jobs", name)
        if acquisition is None:
            complain((*path, "each"), "needs `acquisition: {batch: SECTIONS, wait_s: SECONDS}` at the top")
        if name in sweeps:
            complain((*path, "sweep"), "jobs with `each: batch` cannot be swept; sweep a job that takes all batches")
        elif name in swept:
            complain(path, "follows from a sweep: jobs with `each: batch` cannot")
        for need in jobs[name].upstream():
            if need in late:
                complain(path, f"{need} waits for all batches, so no job with `each: batch` can wait for it")
    for job in jobs.values():
        spec = load_stage(job.stage).inputs
        for key, other, _ in job.references():
            if not job.each and other in each and key in spec and not spec[key].many:
                complain(
                    ("jobs", job.name, "inputs", key),
                    f"takes one artifact, {other} makes one for each batch: put a stage that takes many between "
                    "(such as stack)",
                )  # fmt: skip
    for gate in gates.values():
        for name in _judged(gate) & each:
            complain(
                ("gates", gate.name, "condition"),
                f"{name} has a result for each batch: a condition can judge a job that takes all of them",
            )


def _judged(gate: PipelineGate) -> set[str]:
    try:
        return {job for job, _ in metric_names(gate.condition)} if gate.condition else set()
    except UserError:
        return set()  # complained of already


def _followers(
    jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate], sources: set[str]
) -> set[str]:  # fmt: skip
    """Jobs and gates that come after any of the sources, directly or through others; works on cycles, too."""
    needs = {name: job.upstream() for name, job in jobs.items()} | {name: gate.after for name, gate in gates.items()}
    found: set[str] = set()
    while True:
        more = {name for name, before in needs.items() if name not in found and (sources | found) & set(before)}
        if not more:
            return found
        found |= more


def split_templates(pipeline: Pipeline) -> Pipeline:
    """A pipeline whose jobs for each batch stand apart, as templates."""
    templates = {name: pipeline.jobs[name] for name in pipeline.order if name in pipeline.jobs}
    templates = {name: job for name, job in templates.items() if job.each}
    if not templates:
        return pipeline
    late = frozenset(_followers(pipeline.jobs, pipeline.gates, set(templates)) - set(templates))
    return replace(
        pipeline,
        jobs={name: job for name, job in pipeline.jobs.items() if not job.each},
        order=tuple(name for name in pipeline.order if name not in templates),
        templates=templates,
        late=late,
    )


# --- growing -------------------------------------------------------------------------------------


def with_batch(pipeline: Pipeline, number: int, uri: str) -> Pipeline:
    """The pipeline with the jobs of one more batch, before what waits for all batches. uri: its document."""
    made = [_instance(job, pipeline.templates, number, uri) for job in pipeline.templates.values()]
    early = [name for name in pipeline.order if name not in pipeline.late]
    order = (*early, *(job.name for job in made), *(name for name in pipeline.order if name in pipeline.late))
    return replace(pipeline, jobs={**pipeline.jobs, **{job.name: job for job in made}}, order=order)


def with_end(pipeline: Pipeline, batches: int) -> Pipeline:
    """The pipeline after the last batch: what refers to a template refers to its jobs of all batches."""
    numbers = range(1, batches + 1)

    def all_of(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(
            made for name in names
            for made in ([instance_name(name, n) for n in numbers] if name in pipeline.templates else [name])
        )  # fmt: skip

    def outputs(uris: Iterable[str]) -> tuple[str, ...]:
        found: list[str] = []
        for uri in uris:
            match = reference(uri)
            if match is None or match[1] not in pipeline.templates:
                found.append(uri)
            else:
                found += [f"{instance_name(match[1], n)}.{match[2]}" for n in numbers]
        return tuple(found)

    jobs, gates = dict(pipeline.jobs), dict(pipeline.gates)
    for name in pipeline.late:
        if name in jobs:
            job = jobs[name]
            inputs = {key: outputs(uris) for key, uris in job.inputs.items()}
            jobs[name] = replace(job, inputs=inputs, needs=all_of(job.needs))
        else:
            gates[name] = replace(gates[name], after=all_of(gates[name].after))
    return replace(pipeline, jobs=jobs, gates=gates)


def _instance(job: PipelineJob, templates: Mapping[str, PipelineJob], number: int, uri: str) -> PipelineJob:
    def same_batch(text: str) -> str:
        match = reference(text)
        if match and match[1] in templates:
            return f"{instance_name(match[1], number)}.{match[2]}"
        return text.replace(f"${{{BATCH}}}", uri)

    return replace(
        job,
        name=instance_name(job.name, number),
        inputs={key: tuple(same_batch(text) for text in uris) for key, uris in job.inputs.items()},
        params={key: _filled(value, uri) for key, value in job.params.items()},
        needs=tuple(instance_name(n, number) if n in templates else n for n in job.needs),
    )


def _filled(value: Any, uri: str) -> Any:
    """A parameter's value with the batch's URI in its place."""
    if isinstance(value, str):
        return value.replace(f"${{{BATCH}}}", uri)
    if isinstance(value, dict):
        return {key: _filled(item, uri) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, uri) for item in value]
    return value

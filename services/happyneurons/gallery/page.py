"""The page of a run: what is on it (`contents`), and how it looks (gallery.html, by Jinja)."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from happyneurons._version import __version__
from happyneurons.client.plain import plain, short
from happyneurons.client.runs import Run
from happyneurons.errors import HappyError, UserError
from happyneurons.gallery.pictures import pictures_of, single_views
from happyneurons.store.artifacts import Artifact, Manifest, load_artifact, manifest_of
from happyneurons.v1 import pipelines_pb2
from happyneurons.viewer.links import DEMO, link
from happyneurons.viewer.panels import Panel
from happyneurons.viewer.session import published_state

TEMPLATE = "gallery.html"
PACKAGES = ("happyneurons", "numpy", "tensorflow-cpu", "cloud-volume", "igneous-pipeline", "kimimaro", "mpi4py")
IMAGES = ("image_volume", "section_stack")
TABLES, ROWS = ("table", "report"), 50
"""Kinds that are shown as tables, not as pictures of them; and rows that are."""


def write_gallery(
    run: Run,
    folder: Path,
    *,
    store: str = "",
    published: Mapping[str, Artifact] | None = None,
    viewer: str = DEMO,
    draw: bool = True,
    max_px: int = 768,
) -> Path:
    """Write a run's page, `index.html` with `pictures/` and `tables/` beside it; returns its path.

    The folder can be moved, opened from a disk and served by any web server; it needs nothing from
    elsewhere. store: named in the commands that the page shows. published: the run's layers where browsers
    read them (:func:`happyneurons.viewer.published.published_layers`), for links to Neuroglancer. draw: also
    draw what the run itself has no pictures of.
    """
    import jinja2

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / "index.html").exists():
            raise UserError(f"{folder}: there is something else in this folder; choose another one")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    found = contents(run, folder, published or {}, viewer, draw, max_px)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("happyneurons.gallery", "."), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"figure": _figure, "duration": _duration, "moment": _moment}
    page = environment.get_template(TEMPLATE).render(
        **found, store=store, version=__version__, now=datetime.datetime.now(datetime.UTC).timestamp()
    )
    target = folder / "index.html"
    target.write_text(page, encoding="utf-8")
    return target


def contents(
    run: Run, folder: Path, published: Mapping[str, Artifact], viewer: str, draw: bool, max_px: int
) -> dict[str, Any]:
    """What the template shows, as plain values; pictures and tables are written on the way."""
    message = run.proto
    artifacts, missing = _artifacts(message)
    drawn = {name: a for name, a in artifacts.items() if a.kind not in TABLES}
    pictures = pictures_of(drawn, folder, draw=draw, params={"max_px": max_px, "samples": 2})
    places = {a.digest: name for name, a in published.items()}
    begin, end = _span(message)
    jobs = [_job(job, artifacts, missing, pictures, published, places, viewer, begin, end) for job in message.jobs]
    tables = []
    for table in run.sweep_tables():
        path = folder / "tables" / f"{table.job}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(table.to_csv())
        tables.append({**table.to_dict(), "file": f"tables/{table.job}.csv"})
    return {
        "run": {
            "id": message.id, "name": message.name, "state": run.state, "message": message.message,
            "uri": message.uri, "project": message.project, "submitted_by": message.submitted_by,
            "submitted": _seconds(message, "submit_time"), "ended": _seconds(message, "end_time"),
            "seconds": end - begin if end > begin else None, "yaml": message.pipeline.yaml,
            "parameters": dict(message.pipeline.parameters),
            "link": _link(published, viewer) if published else "",
        },
        "jobs": jobs,
        "gates": [_gate(gate) for gate in message.gates],
        "tables": tables,
    }  # fmt: skip


def _artifacts(message: pipelines_pb2.Run) -> tuple[dict[str, Artifact], dict[str, str]]:
    """(`JOB.OUTPUT` → artifact, why others cannot be read)."""
    found, missing = {}, {}
    for job in message.jobs:
        for name, output in sorted(job.job.outputs.items()):
            try:
                found[f"{job.name}.{name}"] = load_artifact(output.uri)
            except HappyError as error:
                missing[f"{job.name}.{name}"] = str(error)
    return found, missing


def _job(
    job: pipelines_pb2.RunJob, artifacts: Mapping[str, Artifact], missing: Mapping[str, str],
    pictures: Mapping[str, list[Any]], published: Mapping[str, Artifact], places: Mapping[str, str], viewer: str,
    begin: float, end: float,
) -> dict[str, Any]:  # fmt: skip
    message = job.job
    names = [f"{job.name}.{output}" for output in sorted(message.outputs)]
    manifest = next((m for n in names if n in artifacts and (m := _manifest(artifacts[n])) is not None), None)
    given = plain(message.spec.params)
    params = {**(manifest.params if manifest else {}), **given}
    started, ended = _seconds(message, "start_time"), _seconds(message, "end_time")
    whole = max(end - begin, 1e-9)
    bar = None
    if started and ended and not message.reused:
        bar = {"left": 100 * max(started - begin, 0) / whole, "width": max(100 * (ended - started) / whole, 0.4)}
    resources = message.spec.resources
    return {
        "name": job.name, "stage": message.spec.stage, "state": short(message, "state"), "site": job.site,
        "key": message.key, "attempt": message.attempt, "reused": message.reused, "needs": list(job.needs),
        "retries": job.infrastructure_retries, "failure": message.failure.message,
        "quarantined": list(message.failure.quarantined_tasks), "reproduce": message.failure.reproduce_command,
        "seconds": ended - started if started and ended else None, "started": started, "bar": bar,
        "ranks": max(resources.ranks, 1), "threads": max(resources.threads_per_rank, 1),
        "metrics": dict(sorted(message.metrics.items())),
        "params": [
            {"name": name, "value": value, "given": name in given} for name, value in sorted(params.items())
        ],
        "inputs": {name: list(uris.uris) for name, uris in sorted(message.spec.inputs.items())},
        "outputs": [
            {
                "name": name, "kind": message.outputs[name.rpartition(".")[2]].kind,
                "uri": message.outputs[name.rpartition(".")[2]].uri, "problem": missing.get(name, ""),
                "pictures": single_views(pictures.get(name, [])), "table": _table(artifacts.get(name)),
                "link": _output_link(artifacts.get(name), published, places, viewer),
                **_extent(artifacts.get(name)),
            }
            for name in names
        ],
        "provenance": _provenance(manifest) if manifest else {},
    }  # fmt: skip


def _table(artifact: Artifact | None) -> dict[str, Any] | None:
    """First rows of a table, or the figures of a report."""
    from happyneurons.stages.preview.charts import figures

    if artifact is None or artifact.kind not in TABLES:
        return None
    try:
        document = artifact.store().get_json(f"{artifact.kind}.json")
    except (HappyError, ValueError):
        return None
    if artifact.kind == "report":
        found = list(figures(document))
        return {"columns": ["figure", "value"], "rows": found, "more": 0}
    rows = document["rows"]
    return {"columns": document["columns"], "rows": rows[:ROWS], "more": max(len(rows) - ROWS, 0)}


def _extent(artifact: Artifact | None) -> dict[str, Any]:
    size, bounds = (artifact.voxel_size_nm_xyz, artifact.bounds) if artifact else (None, None)
    return {
        "voxel_size": " × ".join(f"{v:g}" for v in size) + " nm" if size else "",
        "shape": " × ".join(str(n) for n in bounds.shape_zyx[::-1]) + " voxels" if bounds else "",
    }


def _manifest(artifact: Artifact) -> Manifest | None:
    if "/manifest.json#" not in artifact.uri:  # made elsewhere
        return None
    try:
        return manifest_of(artifact.uri)
    except HappyError:
        return None


def _provenance(manifest: Manifest) -> dict[str, Any]:
    """The lines of a result's provenance that people ask for; the manifest has the rest."""
    known = manifest.provenance
    packages = known.get("packages", {})
    shown = [name for name in PACKAGES if name in packages] or sorted(packages)[:8]
    peak = known.get("telemetry", {}).get("peak_memory_bytes")
    return {
        "stage version": f"{manifest.stage} {manifest.stage_version}",
        "computed on": f"{known.get('host', '?')} ({known.get('machine', '?')})",
        "finished": _moment(known.get("finished")),
        "image": known.get("image_digest") or "none: the environment itself",
        "Python": known.get("python", "?"),
        "packages": ", ".join(f"{name} {packages[name]}" for name in shown),
        "tasks": f"{known.get('tasks_computed', '?')} computed, {known.get('tasks_resumed', 0)} resumed, "
        f"{len(known.get('tasks_quarantined', []))} given up",
        "peak memory of a rank": f"{peak / 1e9:.2f} GB" if peak else "",
    }


def _gate(gate: pipelines_pb2.Gate) -> dict[str, Any]:
    return {
        "name": gate.name, "state": short(gate, "state"), "question": gate.question, "condition": gate.condition,
        "metrics": dict(gate.metrics), "decided_by": gate.decided_by, "comment": gate.comment,
        "time": _seconds(gate, "decide_time"), "needs": list(gate.needs),
    }  # fmt: skip


def _link(layers: Mapping[str, Artifact], viewer: str) -> str:
    try:
        return link(published_state([Panel("", layers)]), viewer)
    except UserError:
        return ""


def _output_link(
    artifact: Artifact | None, published: Mapping[str, Artifact], places: Mapping[str, str], viewer: str
) -> str:
    """A link to one output where it was published, over the image there."""
    if artifact is None or artifact.digest not in places:
        return ""
    name = places[artifact.digest]
    below = (
        {n: a for n, a in published.items() if a.kind in IMAGES and n != name} if artifact.kind not in IMAGES else {}
    )
    return _link({**below, name: published[name]}, viewer)


def _span(message: pipelines_pb2.Run) -> tuple[float, float]:
    """Begin and end of what was computed in the run, s since 1970."""
    jobs = [j.job for j in message.jobs if not j.job.reused]
    begin = [t for j in jobs if (t := _seconds(j, "start_time"))]
    end = [t for j in jobs if (t := _seconds(j, "end_time"))]
    return (min(begin), max(end)) if begin and end else (0.0, 0.0)


def _seconds(message: Any, field: str) -> float | None:
    return getattr(message, field).ToMilliseconds() / 1e3 if message.HasField(field) else None


def _figure(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.5g}"
    return str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 100 else f"{hours:.1f} h"


def _moment(seconds: float | None) -> str:
    if not seconds:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

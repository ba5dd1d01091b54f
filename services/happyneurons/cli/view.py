"""`hpn view`: results in Neuroglancer."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.cli.session import reading
from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.v1 import pipelines_pb2

IMAGES = ("image_volume", "section_stack")
ON_TOP = ("mask", "segmentation", "mesh_layer", "skeleton_layer")


@click.command()
@click.argument("targets", metavar="RUN|URI…", nargs=-1, required=True)
@click.option("--only", metavar="JOB[.OUTPUT]", multiple=True, help="Of a run, only this (may be repeated).")
@click.option("--all", "everything", is_flag=True, help="Of a run, also its intermediate results.")
@click.option(
    "--worst", type=click.IntRange(1, 1000), metavar="N", help="A link to each of the N worst splits and mergers."
)
@click.option("--port", default=0, help="Port of the viewer [default: any].")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--browser/--no-browser", default=None, help="Open a browser [default: on a terminal].")
@orchestrator_option
@store_option
@json_option
def view(
    targets: tuple[str, ...],
    only: tuple[str, ...],
    everything: bool,
    worst: int | None,
    port: int,
    host: str,
    browser: bool | None,
    orchestrator: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Open a run's results, or artifacts and volumes by URI, in Neuroglancer.

    Of a run, its last images and segmentation with masks, meshes and skeletons are shown; of an
    evaluation's report, what it compared. Serves the data until Ctrl-C.
    """
    from happyneurons.cli.view_worst import add_evaluated, mistake_links, report_of_run
    from happyneurons.viewer import start_viewer

    artifacts: dict[str, Artifact] = {}
    report: Artifact | None = None
    for target in targets:
        if "/" in target or "://" in target:
            artifact = load_artifact(target)
            if artifact.kind == "report":
                report = artifact
            else:
                artifacts[_free(artifacts, _layer_name(target))] = artifact
            continue
        with reading(orchestrator, store) as client:
            found = outputs_of(client.run(target).proto)
        if worst:
            report = load_artifact(report_of_run(found, only))
            # What names the report alone says nothing of the layers.
            reports = [key for key, (kind, _) in found.items() if kind == "report"]
            only = tuple(name for name in only if not any(_matches(key, name) for key in reports))
        artifacts |= {name: load_artifact(uri) for name, uri in select(found, only, everything).items()}
    if worst and report is None:
        raise UserError("--worst goes with a run that has an evaluation, or with the URI of its report")
    evaluated = None if report is None else add_evaluated(artifacts, report)
    viewer = start_viewer(artifacts, port, host=host)
    try:
        mistakes = [] if evaluated is None else mistake_links(viewer, evaluated, worst or 10)
    except BaseException:
        viewer.stop()
        raise
    if as_json:
        answer = {"url": viewer.url, "demo_url": viewer.demo_url, "layers": list(artifacts)}
        print_json({**answer, "worst": mistakes} if evaluated else answer)
    else:
        for mistake in mistakes:
            click.echo(f"{mistake['text']}\n  {mistake['url']}")
        click.echo(viewer.url)
        click.echo(f"or, with the same data: {viewer.demo_url}\nCtrl-C ends it")
    sys.stdout.flush()
    if browser or (browser is None and sys.stdout.isatty() and not as_json):
        click.launch(viewer.url)
    serve_until_signal()
    viewer.stop()


def outputs_of(run: pipelines_pb2.Run) -> dict[str, tuple[str, str]]:
    """`JOB.OUTPUT` → (kind, URI) of a run's results, in the order of its jobs."""
    return {
        f"{job.name}.{name}": (artifact.kind, artifact.uri)
        for job in run.jobs
        for name, artifact in sorted(job.job.outputs.items())
    }


def select(found: Mapping[str, tuple[str, str]], only: tuple[str, ...], everything: bool) -> dict[str, str]:
    """What to show of a run: name → URI. Raises UserError if there is nothing."""
    for name in only:
        if not any(_matches(key, name) for key in found):
            raise UserError(f"--only {name}: the run has {', '.join(found) or 'no results (yet)'}")
    shown = {key: v for key, v in found.items() if v[0] in IMAGES + ON_TOP}
    if only:
        shown = {key: v for key, v in shown.items() if any(_matches(key, name) for name in only)}
    elif not everything:
        # Intermediate results lie in other frames: the last picture is the one that was segmented.
        volumes = [key for key, (kind, _) in shown.items() if kind == "image_volume"]
        pictures = volumes or [key for key, (kind, _) in shown.items() if kind == "section_stack"]
        labels = [key for key, (kind, _) in shown.items() if kind == "segmentation"]
        keep = {*pictures[-1:], *labels[-1:]}
        shown = {key: v for key, v in shown.items() if key in keep or v[0] in ON_TOP[:1] + ON_TOP[2:]}
    if not shown:
        raise UserError("the run has no results (yet) that can be shown; `hpn status RUN` says what it has")
    order = {kind: place for place, kind in enumerate(IMAGES + ON_TOP)}
    return {key: uri for key, (kind, uri) in sorted(shown.items(), key=lambda item: order[item[1][0]])}


def serve_until_signal() -> None:
    """Block until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def _matches(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _layer_name(uri: str) -> str:
    return uri.rstrip("/").replace("#", "/").replace("?", "/").rsplit("/", 1)[-1] or "layer"


def _free(taken: Mapping[str, Artifact], name: str) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free

"""`hpn view`: results in Neuroglancer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.cli.session import reading
from happyneurons.errors import UserError
from happyneurons.rpc.stop_signal import StopSignal
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.v1 import pipelines_pb2

if TYPE_CHECKING:
    from happyneurons.viewer.panels import Panel

IMAGES = ("image_volume", "section_stack")
ON_TOP = ("mask", "segmentation", "mesh_layer", "skeleton_layer")
POINTS = ("table",)
LAYOUTS = ("4panel", "4panel-alt", "xy", "xz", "yz", "xy-3d", "xz-3d", "yz-3d", "3d")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


@click.command()
@click.argument("targets", metavar="RUN|URI|FILE…", nargs=-1, required=True)
@click.option("--only", metavar="JOB[.OUTPUT]", multiple=True, help="Of a run, only this (may be repeated).")
@click.option("--all", "everything", is_flag=True, help="Of a run, also its intermediate results.")
@click.option(
    "--worst", type=click.IntRange(1, 1000), metavar="N", help="A link to each of the N worst splits and mergers."
)
@click.option("--layout", type=click.Choice(LAYOUTS), help="Of a panel [default: 4panel, side by side xy-3d].")
@click.option(
    "--viewer", "page", metavar="URL", help="Another Neuroglancer page that shows the data [default: our own]."
)
@click.option("--state", "state_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the state.")
@click.option("--link", "only_link", is_flag=True, help="Print the link, nothing else, and open no browser.")
@click.option("--port", default=0, help="Port of the viewer [default: any].")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--token", help="First part of every path: the same one keeps links good [default: a random one].")
@click.option("--browser/--no-browser", default=None, help="Open a browser [default: on a terminal].")
@orchestrator_option
@store_option
@json_option
def view(
    targets: tuple[str, ...],
    only: tuple[str, ...],
    everything: bool,
    worst: int | None,
    layout: str | None,
    page: str | None,
    state_file: Path | None,
    only_link: bool,
    port: int,
    host: str,
    token: str | None,
    browser: bool | None,
    orchestrator: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Open a run's results, or artifacts and volumes by URI, in Neuroglancer.

    Of a run, its last images and segmentation with masks, meshes and skeletons are shown; of an
    evaluation's report, what it compared; of a CSV file, its points. Several runs, or published places
    (https://…), stand side by side; what is named by URI besides them is shown with each. Serves the
    data until Ctrl-C.
    """
    from happyneurons.cli.view_worst import add_evaluated, mistake_links
    from happyneurons.store.layers import is_web
    from happyneurons.viewer import Panel, link, published_state, start_viewer
    from happyneurons.viewer.links import DEMO, has_data

    if page is not None and not is_web(page):
        raise UserError(f"--viewer {page}: expected http://… or https://…")
    if token is not None and not _TOKEN.fullmatch(token):
        raise UserError("--token: letters, digits, - and _ only")
    if worst and sum(is_run(t) for t in targets) > 1:
        raise UserError("--worst goes with one run: its mistakes have their own places")
    panels, report = find_panels(targets, only, everything, worst, orchestrator, store)
    artifacts = dict(panels[0].layers)
    evaluated = None if report is None else add_evaluated(artifacts, report)
    panels = [Panel(panels[0].title, artifacts), *panels[1:]]
    layout = layout or ("4panel" if len(panels) == 1 else "xy-3d")
    if only_link and all(is_web(a.data_uri) for p in panels for a in p.layers.values() if has_data(a)):
        state = published_state(panels, layout)
        _write_state(state, state_file)
        click.echo(link(state, page or DEMO))
        return
    viewer = start_viewer(panels, port, host=host, token=token or "", layout=layout, base=page or DEMO)
    try:
        mistakes = [] if evaluated is None else mistake_links(viewer, evaluated, worst or 10)
        _write_state(viewer.state, state_file)
    except BaseException:
        viewer.stop()
        raise
    stop = StopSignal()
    url = viewer.url if page is None else viewer.demo_url
    if as_json:
        layers = [layer["name"] for layer in viewer.state["layers"]]
        answer = {"url": viewer.url, "demo_url": viewer.demo_url, "layers": layers}
        print_json({**answer, "worst": mistakes} if evaluated else answer)
    elif only_link:
        click.echo(url)
    else:
        for mistake in mistakes:
            click.echo(f"{mistake['text']}\n  {mistake['url']}")
        click.echo(url)
        if page is None:
            click.echo(f"or, with the same data: {viewer.demo_url}")
        click.echo("Ctrl-C ends it")
    sys.stdout.flush()
    if browser or (browser is None and sys.stdout.isatty() and not as_json and not only_link):
        click.launch(url)
    stop.wait()
    viewer.stop()


def find_panels(
    targets: Sequence[str], only: tuple[str, ...], everything: bool, worst: int | None, orchestrator: str | None,
    store: str | None,
) -> tuple[list[Panel], Artifact | None]:  # fmt: skip
    """What `hpn view` shows: a panel for each run and published place, or one for all that is named by URI.

    The report: of an evaluation, if it was named or --worst asks for it.
    """
    from happyneurons.cli.view_worst import report_of_run
    from happyneurons.store.layers import is_web
    from happyneurons.viewer.panels import Panel
    from happyneurons.viewer.points import csv_points
    from happyneurons.viewer.published import published_layers

    panels: list[Panel] = []
    shared: dict[str, Artifact] = {}
    report: Artifact | None = None
    for target in targets:
        if is_run(target):
            with reading(orchestrator, store) as client:
                found = outputs_of(client.run(target).proto)
            wanted = only
            if worst:
                report = load_artifact(report_of_run(found, only))
                # What names the report alone says nothing of the layers.
                reports = [key for key, (kind, _) in found.items() if kind == "report"]
                wanted = tuple(name for name in only if not any(_matches(key, name) for key in reports))
            layers = {name: load_artifact(uri) for name, uri in select(found, wanted, everything).items()}
            panels.append(Panel(target, layers))
        elif is_web(target):
            title, layers = published_layers(target)
            panels.append(Panel(title, layers))
        elif target.endswith(".csv"):
            shared[_free(shared, _layer_name(target))] = csv_points(Path(target))
        else:
            artifact = load_artifact(target)
            if artifact.kind == "report":
                report = artifact
            else:
                shared[_free(shared, _layer_name(target))] = artifact
    if worst and report is None:
        raise UserError("--worst goes with a run that has an evaluation, or with the URI of its report")
    if not panels:
        return [Panel("", shared)], report
    titles = _titles([panel.title for panel in panels])
    return [Panel(t, {**shared, **p.layers}) for t, p in zip(titles, panels, strict=True)], report


def is_run(target: str) -> bool:
    """Whether a target names a run; everything else has a place in it, or is a file."""
    return "/" not in target and "://" not in target and not target.endswith(".csv")


def _titles(given: Sequence[str]) -> list[str]:
    """Names of panels that differ."""
    return [name if given.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(given)]


def _write_state(state: Mapping[str, Any], file: Path | None) -> None:
    if file is None:
        return
    try:
        file.write_text(json.dumps(state, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--state {file}: {error.strerror}") from None


def outputs_of(run: pipelines_pb2.Run) -> dict[str, tuple[str, str]]:
    """`JOB.OUTPUT` → (kind, URI) of a run's results, in the order of its jobs."""
    return {
        f"{job.name}.{name}": (artifact.kind, artifact.uri)
        for job in run.jobs
        for name, artifact in sorted(job.job.outputs.items())
    }


def select(found: Mapping[str, tuple[str, str]], only: tuple[str, ...], everything: bool) -> dict[str, str]:
    """What to show of a run: name → URI. Raises UserError if there is nothing."""
    found = named(found, only)
    # Most tables are figures: those with places are shown when they are asked for.
    shown = {key: v for key, v in found.items() if v[0] in IMAGES + ON_TOP + (POINTS if only else ())}
    if not only and not everything:
        # Intermediate results lie in other frames: the last picture is the one that was segmented.
        volumes = [key for key, (kind, _) in shown.items() if kind == "image_volume"]
        pictures = volumes or [key for key, (kind, _) in shown.items() if kind == "section_stack"]
        labels = [key for key, (kind, _) in shown.items() if kind == "segmentation"]
        keep = {*pictures[-1:], *labels[-1:]}
        shown = {key: v for key, v in shown.items() if key in keep or v[0] in ON_TOP[:1] + ON_TOP[2:]}
    if not shown:
        raise UserError("the run has no results (yet) that can be shown; `hpn status RUN` says what it has")
    order = {kind: place for place, kind in enumerate(IMAGES + ON_TOP + POINTS)}
    return {key: uri for key, (kind, uri) in sorted(shown.items(), key=lambda item: order[item[1][0]])}


def named(found: Mapping[str, tuple[str, str]], only: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """Those of a run's outputs that `only` names, all if it names none. Raises UserError for other names."""
    for name in only:
        if not any(_matches(key, name) for key in found):
            raise UserError(f"--only {name}: the run has {', '.join(found) or 'no results (yet)'}")
    return {key: v for key, v in found.items() if not only or any(_matches(key, name) for name in only)}


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

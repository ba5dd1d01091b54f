"""`hpn gallery` and `hpn preview`: results as pictures, without a viewer."""

from __future__ import annotations

from pathlib import Path

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.errors import UserError


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write [default: gallery-RUN].")
@click.option("--published", metavar="URL", help="Where `hpn publish` put the results: adds links to Neuroglancer.")
@click.option("--viewer", "page", metavar="URL", help="Neuroglancer page of the links [default: the public one].")
@click.option("--draw/--no-draw", default=True, help="Also draw what the run's preview jobs have not [default].")
@click.option("--max-px", default=768, show_default=True, type=click.IntRange(64, 8192), help="Size of new pictures.")
@orchestrator_option
@store_option
@json_option
def gallery(
    run_id: str,
    out: Path | None,
    published: str | None,
    page: str | None,
    draw: bool,
    max_px: int,
    orchestrator: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Write a page with a run's pictures, figures, parameters, times and provenance.

    A folder of static files that needs nothing from elsewhere: open index.html, or put it on any web
    server. May be written while the run goes on.
    """
    from happyneurons.cli.session import reading
    from happyneurons.gallery import write_gallery
    from happyneurons.viewer.links import DEMO
    from happyneurons.viewer.published import published_layers

    layers = published_layers(published)[1] if published else {}
    with reading(orchestrator, store) as client:
        run = client.run(run_id)
        path = write_gallery(
            run, out or Path(f"gallery-{run_id}"), store=store or "", published=layers, viewer=page or DEMO, draw=draw,
            max_px=max_px,
        )  # fmt: skip
    print_json({"page": str(path)}) if as_json else click.echo(path)


@click.command()
@click.argument("targets", metavar="RUN|URI…", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--only", metavar="JOB[.OUTPUT]", multiple=True, help="Of a run, only this (may be repeated).")
@click.option("--param", "params", metavar="KEY=VALUE", multiple=True, help="Of the stage preview: max_px, samples, …")
@orchestrator_option
@store_option
@json_option
def preview(
    targets: tuple[str, ...],
    out: Path,
    only: tuple[str, ...],
    params: tuple[str, ...],
    orchestrator: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Draw results of any kind into PNG files, with an index and a notebook.

    Segmentations are drawn over the last image before them. In a pipeline the stage `preview` does the same.
    """
    from happyneurons.cli.options import parse_assignments
    from happyneurons.cli.session import reading
    from happyneurons.cli.view import is_run, named, outputs_of
    from happyneurons.gallery import draw_pictures
    from happyneurons.gallery.pictures import picturable
    from happyneurons.jobs.stage import parse_params
    from happyneurons.stages.preview.stage import Preview
    from happyneurons.store.artifacts import load_artifact

    given = parse_assignments(params, "--param")
    parse_params(Preview, given)
    uris: list[str] = []
    for target in targets:
        if is_run(target):
            with reading(orchestrator, store) as client:
                found = outputs_of(client.run(target).proto)
            uris += [uri for _, uri in named(found, only).values()]
        else:
            uris.append(target)
    artifacts = [a for a in (load_artifact(uri) for uri in uris) if picturable(a)]
    if not artifacts:
        raise UserError("nothing there that can be drawn; `hpn status RUN` says what a run has")
    count = draw_pictures(artifacts, out, given)
    print_json({"folder": str(out), "pictures": count}) if as_json else click.echo(f"{count} pictures in {out}")

"""`hpn export`: meshes and skeletons as OBJ, PLY and SWC."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.errors import EXIT_FAILED, UserError

if TYPE_CHECKING:
    from happyneurons.export import Layer

_TOLD = 10


@click.command()
@click.argument("source", metavar="RUN|URI")
@click.argument("dest", metavar="DEST")
@click.option("--format", "form", required=True, type=click.Choice(["obj", "ply", "swc"]), help="Of the files.")
@click.option("--ids", metavar="ID,…", help="These segments.")
@click.option(
    "--ids-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Segments of a file: ids between blanks, commas or lines; # begins a remark.",
)  # fmt: skip
@click.option("--largest", metavar="N", type=click.IntRange(1), help="The N largest, by the layer's own table.")
@click.option("--all", "everything", is_flag=True, help="All segments of the layer.")
@click.option("--lod", default=0, show_default=True, type=click.IntRange(0), help="Level of detail; 0 is the finest.")
@click.option("--units", type=click.Choice(["nm", "um"]), help="Of lengths [default: nm; SWC µm].")
@click.option("--only", metavar="JOB[.OUTPUT]", multiple=True, help="Of a run, only this (may be repeated).")
@click.option("--force", is_flag=True, help="Write again what is there already.")
@click.option(
    "--threads", default=4, show_default=True, type=click.IntRange(1, 64), help="Segments under way at a time."
)
@orchestrator_option
@store_option
@json_option
def export(
    source: str,
    dest: str,
    form: Any,
    ids: str | None,
    ids_file: Path | None,
    largest: int | None,
    everything: bool,
    lod: int,
    units: Any,
    only: tuple[str, ...],
    force: bool,
    threads: int,
    orchestrator: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Write a file for each segment of a mesh or skeleton layer: DEST/ID.obj, .ply or .swc.

    Of a run, its meshes or skeletons are taken; a URI is that of an artifact, of a precomputed mesh or
    skeleton layer, of a segmentation that has one inside (also precomputed://https://…), or of a place
    that was published. DEST is a folder, s3://…, gs://… or az://…. May be interrupted and given again:
    what is there already is kept.
    """
    from happyneurons.cli.bars import counting_bar
    from happyneurons.export import export_layer
    from happyneurons.export.exporting import KINDS

    wanted = _chosen(ids, ids_file, largest, everything)
    if form == "swc" and lod:
        raise UserError("--lod goes with meshes: skeletons have no levels of detail")
    layer = _layer(source, KINDS[form], only, orchestrator, store)
    with counting_bar("segments", quiet=as_json) as told:
        done = export_layer(
            layer, dest, form, ids=wanted, largest=largest, lod=lod, units=units, force=force, threads=threads,
            on_segment=told,
        )  # fmt: skip
    if as_json:
        print_json({**vars(done), "loops": {i: {"edges": n, "nm": nm} for i, (n, nm) in done.loops.items()}})
    else:
        click.echo(
            f"{done.written + done.unchanged} {form} files at {done.place}: {done.written} written "
            f"({done.written_bytes / 1e6:.1f} MB), {done.unchanged} there already"
        )
        what = "skeleton" if form == "swc" else "mesh"
        if done.loops:
            edges, nm = (sum(v) for v in zip(*done.loops.values(), strict=True))
            click.echo(
                f"SWC has no loops: {edges} edges ({nm:.0f} nm) left out in {len(done.loops)} skeletons: "
                f"{_some(sorted(done.loops))}",
                err=True,
            )
        if done.missing:
            click.echo(f"no {what}, {len(done.missing)} segments: {_some(done.missing)}", err=True)
        for segment, why in sorted(done.failed.items())[:_TOLD]:
            click.echo(f"cannot be read: {segment} ({why})", err=True)
        if len(done.failed) > _TOLD:
            click.echo(f"cannot be read: {len(done.failed)} in all; --json names them", err=True)
    if done.failed or (wanted is not None and done.missing):
        sys.exit(EXIT_FAILED)


def _chosen(ids: str | None, ids_file: Path | None, largest: int | None, everything: bool) -> list[int] | None:
    """The ids that were named; None if the layer is to say. Raises UserError."""
    if sum((ids is not None, ids_file is not None, largest is not None, everything)) != 1:
        raise UserError("say which segments: one of --ids, --ids-file, --largest and --all")
    if ids_file is not None:
        try:
            lines = ids_file.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"--ids-file {ids_file}: cannot be read as text ({error})") from None
        text, where = " ".join(line.partition("#")[0] for line in lines), f"--ids-file {ids_file}"
    elif ids is not None:
        text, where = ids, "--ids"
    else:
        return None
    words = re.split(r"[\s,;]+", text.strip(" \t\r\n,;"))
    if words == [""]:
        raise UserError(f"{where}: no ids there")
    for word in words:
        if not re.fullmatch(r"[0-9]{1,20}", word) or int(word) >= 2**64:
            raise UserError(f"{where}: {word!r} is not the id of a segment (a number, 0 to 2^64 - 1)")
    return [int(word) for word in words]


def _layer(source: str, kind: str, only: tuple[str, ...], orchestrator: str | None, store: str | None) -> Layer:
    from happyneurons.cli.session import reading
    from happyneurons.cli.view import is_run, named, outputs_of
    from happyneurons.export import find_layer, open_layer
    from happyneurons.store.artifacts import load_artifact
    from happyneurons.store.layers import is_web
    from happyneurons.viewer.published import published_layers

    if is_run(source):
        with reading(orchestrator, store) as client:
            found = outputs_of(client.run(source).proto)
        taken = {name: uri for name, (of, uri) in named(found, only).items() if of in (kind, "segmentation")}
        if not taken:
            raise UserError(f"run {source}: it has no results (yet) of that kind: {', '.join(found) or 'none at all'}")
        return find_layer({name: load_artifact(uri) for name, uri in taken.items()}, kind)
    if only:
        raise UserError("--only goes with a run")
    if is_web(source):
        try:
            published = published_layers(source)[1]
        except UserError:  # nothing was: a precomputed layer, then
            published = {}
        if published:
            return find_layer(published, kind)
    return open_layer(source, kind)


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:_TOLD])) + (f" … ({len(ids)} in all; --json names them)" if len(ids) > _TOLD else "")

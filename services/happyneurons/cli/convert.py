"""`hpn convert`: a volume from one format into another, without an orchestrator."""

from __future__ import annotations

import contextlib
import shutil
from typing import Any

import click

from happyneurons.cli.options import json_option, parse_assignments, print_json
from happyneurons.cli.stage import run_here
from happyneurons.errors import EXIT_USAGE, UserError

FORMATS = ("precomputed", "hdf5", "tiff", "ome-zarr", "webknossos-wkw", "webknossos-zarr3", "knossos")


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--to", "target_format", type=click.Choice(FORMATS), help="Format to write [default: by TARGET's name].")
@click.option("--from", "source_format", metavar="FORMAT", default="auto", help="Format of SOURCE [default: found].")
@click.option("--kind", type=click.Choice(["image", "segmentation"]), help="What it is, if SOURCE does not say.")
@click.option("--mip", type=int, metavar="LEVEL", help="Level of SOURCE to read.  [default: 0]")
@click.option("--levels", type=int, metavar="N", help="Levels to make above full resolution.  [default: 0]")
@click.option("--dtype", metavar="TYPE", help="Other type of voxels; each value must fit.")
@click.option("--voxel-size-nm", "voxel_size", metavar="X,Y,Z", help="If SOURCE does not say, or says it wrongly.")
@click.option("--offset", metavar="X,Y,Z", help="New coordinates of the first voxel.")
@click.option("--bounds", metavar="X,Y,Z:X,Y,Z", help="Part of SOURCE: minimum and maximum (exclusive), voxels.")
@click.option("--verify", is_flag=True, help="Read everything that was written once more, and compare.")
@click.option("--param", "params", metavar="KEY=VALUE", multiple=True, help="Any other parameter of the stage convert.")
@click.option("-n", "ranks", default=1, show_default=True, metavar="RANKS", help="MPI ranks that work.")
@click.option(
    "--store", metavar="URI", help="Where the job keeps its journal [default: TARGET.hpn, removed once it is done]."
)
@json_option
def convert(
    source: str,
    target: str,
    target_format: str | None,
    source_format: str,
    kind: str | None,
    mip: int | None,
    levels: int | None,
    dtype: str | None,
    voxel_size: str | None,
    offset: str | None,
    bounds: str | None,
    verify: bool,
    params: tuple[str, ...],
    ranks: int,
    store: str | None,
    as_json: bool,
) -> None:
    """Write the volume SOURCE to TARGET in another format.

    Both are a FOLDER, FILE or URI; ?NAME names what is inside: DATASET.h5?labels, FOLDER?color. Interrupted, the same
    command goes on where it was.

    \b
    hpn convert em.h5?em em.zarr --levels 4 -n 8
    hpn convert s3://bucket/volume dataset?segmentation --to webknossos-wkw
    hpn convert sections/ volume --to precomputed --voxel-size-nm 4,4,40
    """
    from happyneurons.formats.location import Location, absolute
    from happyneurons.formats.registry import named
    from happyneurons.store.documents import Store

    place = Location.parse(target)
    if target_format is None:
        found = named(place)
        if found is None or found.writer is None:
            raise UserError(f"{target}: its name does not say a format; give one: --to {', '.join(FORMATS)}")
        target_format = found.name
    ours = "/manifest.json#" in source  # a result of a job
    values: dict[str, Any] = {
        "source": None if ours else absolute(source), "source_format": source_format,
        "target": absolute(target), "format": target_format,
        "kind": kind, "mip": mip, "num_mips": levels, "dtype": dtype, "verify": verify,
        "voxel_size_nm_xyz": _numbers(voxel_size, "--voxel-size-nm", float),
        "offset_xyz": _numbers(offset, "--offset", int),
        "bounds_xyz": None if bounds is None else [_numbers(part, "--bounds", int) for part in _two(bounds)],
    }  # fmt: skip
    values = {name: value for name, value in values.items() if value is not None}
    values.update(parse_assignments(params, "--param"))
    inputs = {"volume": [source]} if ours else {}
    own = store is None
    root = ".".join([place.root, *filter(None, [place.inner.replace("/", "-")]), "hpn"]) if own else str(store)
    try:
        result = run_here("convert", inputs, values, root, ranks=ranks, quiet=as_json)
    except SystemExit as end:
        # Refused before anything was written: there is nothing to go on with.
        if own and end.code == EXIT_USAGE and not any(p.endswith("claim.json") for p in Store(root).list("artifacts")):
            _remove(root)
        raise
    if own:
        _remove(root)
    uri = f"{absolute(target)}"
    if as_json:
        print_json({"target": uri, "format": target_format, "metrics": result["metrics"]})
        return
    size = f"{result['metrics']['voxels']:,.0f} voxels".replace(",", " ")
    click.echo(f"{uri}: {size}, {target_format}" + (", nothing to do" if result["reused"] else ""))


def _remove(root: str) -> None:
    """The journal of a finished job, and nothing else that somebody may have put there."""
    from happyneurons.store.documents import Store, local_path

    folder = local_path(root)
    if folder is not None:
        for name in ("jobs", "artifacts", ".probe"):
            shutil.rmtree(folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        return
    store = Store(root)
    for path in [*store.list("jobs"), *store.list("artifacts")]:
        store.delete(path)


def _two(text: str) -> list[str]:
    parts = text.split(":")
    if len(parts) != 2:
        raise UserError(f"--bounds {text}: write X,Y,Z:X,Y,Z, minimum and maximum")
    return parts


def _numbers(text: str | None, option: str, number: Any) -> list[Any] | None:
    if text is None:
        return None
    try:
        values = [number(v) for v in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise UserError(f"{option} {text}: write three numbers, X,Y,Z")
    return values

"""`hpn acquire`: simulate; watch from `acquire_watch`; report and end from `acquire_report`."""

from __future__ import annotations

from pathlib import Path

import click

from happyneurons.cli.acquire_report import end, report
from happyneurons.cli.acquire_watch import watch
from happyneurons.cli.options import json_option, parse_assignments, print_json
from happyneurons.errors import UserError


@click.group()
def acquire() -> None:
    """Microscopes."""


acquire.add_command(watch)
acquire.add_command(report)
acquire.add_command(end)


@acquire.command()
@click.argument("image", metavar="IMAGE_URI")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--labels", metavar="URI", help="True segmentation of the volume; kept with the truth.")
@click.option("--tiles", default="2x1", show_default=True, metavar="COLSxROWS", help="Tiles of a section.")
@click.option("--overlap-px", type=int, help="Overlap of neighbouring tiles [default: 12 % of a tile].")
@click.option("--sections", metavar="Z0:Z1", help="Sections to photograph [default: all].")
@click.option("--border", type=click.Choice(["crop", "reflect"]), default="crop", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Another seed is another day at the microscope.")
@click.option("--pace-s", default=0.0, show_default=True, help="Seconds from one section to the next.")
@click.option("--fault", "faults", metavar="Z=KIND", multiple=True, help="Damage a section: 12=truncated.")
@click.option("--distortion", metavar="KEY=VALUE", multiple=True, help="Such as stage_jitter_px=2.")
@json_option
def simulate(
    image: str,
    folder: Path,
    labels: str | None,
    tiles: str,
    overlap_px: int | None,
    sections: str | None,
    border: str,
    seed: int,
    pace_s: float,
    faults: tuple[str, ...],
    distortion: tuple[str, ...],
    as_json: bool,
) -> None:
    """Photograph a volume as a microscope would: tiles with overlap, jitter, bending and noise.

    The truth is kept beside the tiles. Doing it again makes what is missing.
    """
    from happyneurons.acquisition.simulate import simulate_acquisition

    columns, rows = _pair(tiles, "x", "--tiles", "COLSxROWS")
    done: list[int] = []
    document = simulate_acquisition(
        image, folder, labels_uri=labels, tiles=(columns, rows), overlap_px=overlap_px,
        sections=_pair(sections, ":", "--sections", "Z0:Z1") if sections else None,
        border="reflect" if border == "reflect" else "crop", seed=seed, pace_s=pace_s,
        faults={_whole(z, "--fault"): str(kind) for z, kind in parse_assignments(faults, "--fault").items()},
        on_section=lambda z, _: done.append(z),
        **parse_assignments(distortion, "--distortion"),
    )  # fmt: skip
    if as_json:
        print_json({"folder": str(folder), "sections": done, "acquisition": document.model_dump(mode="json")})
    else:
        click.echo(f"{len(done)} sections in {folder}; go on: hpn stage run ingest --param source={folder}")


def _pair(text: str, separator: str, option: str, form: str) -> tuple[int, int]:
    first, _, second = text.partition(separator)
    try:
        return int(first), int(second)
    except ValueError:
        raise UserError(f"{option} {text}: write {form}") from None


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{option} {text}: write Z=KIND with a section's number") from None

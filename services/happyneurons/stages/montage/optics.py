"""What the microscope's optics do to all tiles alike: distortion (`lens`) and darkening (`shading`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from happyneurons.errors import TaskError
from happyneurons.stages.montage.lens import Lens, solve_lens
from happyneurons.stages.montage.params import KnownOptics, MontageParams
from happyneurons.stages.montage.section import Found, match_neighbours, placed, readable
from happyneurons.stages.montage.shading import Shading, shading_contribution, solve_shading
from happyneurons.stages.montage.solve import lens_contribution
from happyneurons.stages.montage.tiles import Section, TileReader


@dataclass(frozen=True)
class Optics:
    """None: not known, or none to be seen."""

    lens: Lens | None = None
    shading: Shading | None = None

    @staticmethod
    def known(known: KnownOptics) -> Optics:
        """As the parameter says."""
        width, height = known.tile_width_px, known.tile_height_px
        shaded = known.shading_x or known.shading_y
        shading = Shading(width, height, known.shading_x, known.shading_y) if shaded else None
        return Optics(Lens(width, height, (known.lens_radial_px, known.lens_spiral_px)), shading)

    def figures(self) -> dict[str, float]:
        """What was found, by name."""
        figures = {} if self.lens is None else self.lens.figures()
        return figures if self.shading is None else figures | self.shading.figures()

    def document(self) -> dict[str, Any] | None:
        """As the parameter `optics` takes it; None if nothing was found."""
        of = self.lens or self.shading
        return None if of is None else {"tile_width_px": of.width, "tile_height_px": of.height, **self.figures()}


def see_optics(section: Section, params: MontageParams, reader: TileReader) -> tuple[dict[str, Any], Found | None]:
    """What the seams of a section say about the optics, by the first parameter set, and its matches.

    Says nothing (an empty dict) if not all tiles can be joined; None instead of matches if not all can be read.
    """
    try:
        tiles, damaged = readable(section, reader)
    except TaskError:
        return {}, None
    if damaged:
        return {}, None
    found = match_neighbours(tiles, params.sets[0], reader)
    placement = placed(tiles, found, params, None)
    if max(placement.group) > 0:
        return {}, found
    elastic = {"node_spacing_px": params.node_spacing_px, "membrane": params.membrane, "bending": params.bending}
    seen = {
        "lens": lens_contribution(tiles, placement, **elastic),
        "shading": shading_contribution(tiles, placement.pairs),
    }
    return {name: part.data() for name, part in seen.items() if part is not None}, found


def solve_optics(seen: Iterable[Mapping[str, Any]], params: MontageParams) -> Optics:
    """What sections agree on, if it is not known already. seen: what `see_optics` says of each."""
    if params.optics is not None:
        return Optics.known(params.optics)
    parts = list(seen)
    lens = solve_lens(p["lens"] for p in parts if "lens" in p)
    shading = solve_shading(p["shading"] for p in parts if "shading" in p) if params.shading else None
    return Optics(lens, shading)

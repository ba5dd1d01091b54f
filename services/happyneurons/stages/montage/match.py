"""Matches between overlapping tiles: coarse shift, affine map from few large steps, then many small blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.imaging.fits import fit_smooth
from happyneurons.imaging.matching import (
    Matches,
    block_centres,
    coarse_shift,
    dog,
    level_contrast,
    match_blocks,
    shrink,
)
from happyneurons.stages.montage.params import MatchSet
from happyneurons.stages.montage.strips import Strip, View, overlap, view_factor
from happyneurons.stages.montage.tiles import Tile, TileReader

Floats = NDArray[np.float64]

# The coarse shift is found on strips whose longer side has about this many px …
_COARSE_PX = 400
# … but at most this much smaller than the tile, so that membranes are still there.
_MAX_SHRINK = 8


@dataclass(frozen=True)
class Greys:
    """Mean grey values of both tiles around places all over their overlap.

    xy_a, xy_b (k, 2): px of the same tissue in tiles a and b; a, b (k,): grey values there.
    """

    xy_a: Floats
    xy_b: Floats
    a: Floats
    b: Floats


@dataclass(frozen=True)
class PairMatches:
    """Corresponding px of tiles a and b (indices), and how bright they show what both show.

    matches: xy_a in tile a, xy_b in tile b. contrast_*: standard deviation of the filtered pictures over
    the same tissue. blocks: how many were tried.
    """

    a: int
    b: int
    matches: Matches
    greys: Greys
    contrast_a: float
    contrast_b: float
    blocks: int


def matches_to_arrays(found: Mapping[tuple[int, int], PairMatches]) -> dict[str, np.ndarray]:
    """Arrays for an npz: `pairs` (n, 2), `contrasts` (n, 2), `blocks` (n,); for each pair matches and greys."""
    pairs = [found[k] for k in sorted(found)]
    return {
        "pairs": np.array([(p.a, p.b) for p in pairs], dtype=np.int64).reshape(-1, 2),
        "contrasts": np.array([(p.contrast_a, p.contrast_b) for p in pairs], dtype=np.float64).reshape(-1, 2),
        "blocks": np.array([p.blocks for p in pairs], dtype=np.int64),
        **{
            f"matches_{i:06d}": np.column_stack([p.matches.xy_a, p.matches.xy_b, p.matches.score])
            for i, p in enumerate(pairs)
        },
        **{
            f"greys_{i:06d}": np.column_stack([p.greys.xy_a, p.greys.xy_b, p.greys.a, p.greys.b])
            for i, p in enumerate(pairs)
        },
    }


def matches_from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[tuple[int, int], PairMatches]:
    """What `matches_to_arrays` made."""
    found = {}
    for i, (a, b) in enumerate(arrays["pairs"].tolist()):
        points, grey = arrays[f"matches_{i:06d}"], arrays[f"greys_{i:06d}"]
        matches = Matches(points[:, :2], points[:, 2:4], points[:, 4])
        greys = Greys(grey[:, :2], grey[:, 2:4], grey[:, 4], grey[:, 5])
        contrast_a, contrast_b = arrays["contrasts"][i].tolist()
        found[a, b] = PairMatches(a, b, matches, greys, contrast_a, contrast_b, int(arrays["blocks"][i]))
    return found


def match_pair(
    tiles: Sequence[Tile], a: int, b: int, reader: TileReader, settings: MatchSet, shift_xy: Floats | None = None
) -> PairMatches | None:
    """Matches of tiles a and b, or None if they do not fit together (no texture, no overlap).

    shift_xy: px of b - px of a where it is known to a few px; else it is looked for.
    """
    first, second = tiles[a], tiles[b]
    picture_a, picture_b = reader.read(first), reader.read(second)
    if shift_xy is not None:
        shift, uncertainty = shift_xy, 3.0
    else:
        found = _coarse(first, second, picture_a, picture_b, settings)
        if found is None:
            return None
        shift, uncertainty = found
    inner_a, inner_b = overlap(first, second, shift), overlap(second, first, -shift)
    if min(inner_a.size) < 8 or min(inner_b.size) < 8:
        return None
    # The scan of a microscope may stretch a tile's rim by 2 %: that much the first blocks may deviate.
    wide_search = int(np.ceil(uncertainty + 2 + 0.02 * max(inner_a.size)))
    # The strips are filtered with some surroundings, so that their rims are as good as the rest.
    rim = int(np.ceil(9 * settings.sigma_px))
    factor = view_factor(settings.sigma_px, inner_a)
    view_a = View.of(picture_a, inner_a.grown(rim, first), settings.sigma_px, factor)
    view_b = View.of(picture_b, inner_b.grown(rim + wide_search, second), settings.sigma_px, factor)
    common = view_a.inside(inner_a)

    def blocks(guess: Callable[[Floats], Floats], search_px: float, step_px: float, limit: int) -> tuple[Matches, int]:
        search = math.ceil(search_px / factor)
        centres, half = _centres(common, settings.block_px / factor, search, step_px / factor, limit)
        result = match_blocks(
            view_a.picture, view_b.picture, centres, view_b.seen(guess(view_a.tile(centres))),
            half_px=half, search_px=search, min_score=settings.min_score, max_ambiguity=_AMBIGUITY,
        )  # fmt: skip
        return Matches(view_a.tile(result.xy_a), view_b.tile(result.xy_b), result.score), len(centres)

    rough, _ = blocks(lambda xy: xy + shift, wide_search, 2 * settings.block_px, 48)
    agreed, course = fit_smooth(rough, least_px=2.0, most_px=settings.search_px - 1.0)
    if agreed.sum() < 3:
        course = fit_smooth(Matches(np.zeros((1, 2)), shift[None], np.ones(1)))[1]
    matches, tried = blocks(course, settings.search_px, settings.step_px, settings.max_blocks)
    agreed, course = fit_smooth(matches, most_px=_TOLERANCE_PX)
    # Blocks of unlike tissue, or of bare resin, match too, but weakly and each somewhere else.
    strength = matches.score - settings.min_score
    if agreed.sum() < settings.min_matches or strength[agreed].sum() < 0.5 * strength.sum():
        return None
    matches, greys = matches.select(agreed), _greys(view_a, view_b, common, course)
    if not len(greys.a):
        return None
    moved = view_b.seen(matches.xy_b) - view_a.seen(matches.xy_a)
    # Contrast is that of the filtered pictures: their noise is low, and shading towards the tile's rim is gone.
    edges_a, edges_b = _common(view_a.picture, view_b.picture, common, moved)
    contrasts = float(edges_a.std()), float(edges_b.std())
    return PairMatches(a, b, matches, greys, *contrasts, tried)


# Grey values are means over squares of this many px of a view, but there are about so many of them at most.
_GREY_PX = 8
_MOST_GREYS = 1000


def _greys(view_a: View, view_b: View, common: Strip, course: Callable[[Floats], Floats]) -> Greys:
    """common: px of view a; course: px of tile a → px of tile b."""
    width, height = common.size
    step = max(_GREY_PX, math.sqrt(width * height / _MOST_GREYS))
    half = step / 2
    places = block_centres(common.x0 + half, common.y0 + half, common.x1 - 1 - half, common.y1 - 1 - half, step)
    xy_a = view_a.tile(places)
    xy_b = course(xy_a)
    seen = view_b.holds(xy_b)
    xy_a, xy_b = xy_a[seen], xy_b[seen]
    return Greys(xy_a, xy_b, view_a.grey(xy_a, step), view_b.grey(xy_b, step))


def featureless(picture: np.ndarray) -> bool:
    """Whether a tile, uint8 (y, x), shows nothing but noise, as resin beside the tissue does.

    White noise filtered with twice the sigma has half the standard deviation; tissue has structure at all sizes.
    """
    # Near the rim the filter mirrors the picture, which makes an edge of an uneven beam.
    rim = min(36, min(picture.shape) // 4)
    fine, broad = (float(dog(picture, sigma)[rim:-rim, rim:-rim].std()) for sigma in (2.0, 4.0))
    return 2 * broad <= _NOISE * fine


# That ratio is 1.0 for blank sections, 1.06 for softened noise, 1.7 for tissue at a tenth of its contrast, else 2 to 3.
_NOISE = 1.15
# A block that fits elsewhere almost as well says nothing.
_AMBIGUITY = 0.9
# Matches further than this off the smooth map of their seam are taken for wrong (px).
_TOLERANCE_PX = 3.0


def _centres(inner: Strip, block_px: float, search: int, step: float, limit: int) -> tuple[Floats, tuple[int, int]]:
    """(n, 2) block centres in an overlap, not many more than the limit, and the half size of the blocks."""
    width, height = inner.size
    half_x, half_y = _half(width, block_px, search), _half(height, block_px, search)
    # A block needs room for its search on the side where the other tile ends.
    reach_x, reach_y = half_x + min(search, 3), half_y + min(search, 3)
    room_x, room_y = max(0, width - 1 - 2 * reach_x), max(0, height - 1 - 2 * reach_y)
    while (room_x // step + 2) * (room_y // step + 2) > limit and step < max(room_x, room_y):
        step *= 1.2
    centres = block_centres(
        inner.x0 + reach_x, inner.y0 + reach_y, inner.x1 - 1 - reach_x, inner.y1 - 1 - reach_y, step
    )
    return centres, (half_x, half_y)


def _half(length: int, block_px: float, search: int) -> int:
    """Half size of a block along a side of an overlap of that length."""
    return max(2, min(int(block_px / 2), (length - 2 - 2 * min(search, 3)) // 2))


def _coarse(
    first: Tile, second: Tile, picture_a: np.ndarray, picture_b: np.ndarray, settings: MatchSet
) -> tuple[Floats, float] | None:
    """(px of second - px of first, uncertainty px) or None."""
    expected = np.array([first.x_px - second.x_px, first.y_px - second.y_px])
    error = settings.stage_error_px
    slack = float(max(first.width, first.height, second.width, second.height)) if error is None else error
    strip_a, strip_b = overlap(first, second, expected, slack), overlap(second, first, -expected, slack)
    if min(*strip_a.size, *strip_b.size) < 8:
        return None
    shortest, longest = min(*strip_a.size, *strip_b.size), max(*strip_a.size, *strip_b.size)
    factor = int(np.clip(min(longest / _COARSE_PX, shortest / 24), 1, _MAX_SHRINK))
    small_a, small_b = shrink(strip_a.of(picture_a), factor), shrink(strip_b.of(picture_b), factor)
    sigma = max(1.5, settings.sigma_px / factor)
    # Half a shrunken overlap of 8 x 24 px is the least that can be told from chance.
    found = coarse_shift(
        level_contrast(dog(small_a, sigma), 6 * sigma), level_contrast(dog(small_b, sigma), 6 * sigma),
        expected_xy=(expected + strip_a.origin - strip_b.origin) / factor,
        max_error_px=None if error is None else error / factor,
        min_overlap_px=min(192.0, small_a.size / 4, small_b.size / 4),
    )  # fmt: skip
    if found is None:
        return None
    # In a small window everything may correlate with everything, and the best still be right.
    clear = found.correlation >= 0.25 and found.significance >= 1.4 * found.runner_up
    if found.significance < settings.min_significance and not clear:
        return None
    return np.array(found.shift_xy) * factor + strip_b.origin - strip_a.origin, float(factor)


def _common(picture_a: np.ndarray, picture_b: np.ndarray, inner: Strip, moved: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of both pictures over the tissue they share, px by px but for the sub-pixel part.

    inner: of picture a; moved (n, 2): b - a at the matches.
    """
    shift = np.rint(np.median(moved, axis=0)).astype(int)
    x0, y0 = max(inner.x0, -shift[0]), max(inner.y0, -shift[1])
    x1 = min(inner.x1, picture_b.shape[1] - shift[0])
    y1 = min(inner.y1, picture_b.shape[0] - shift[1])
    return picture_a[y0:y1, x0:x1], picture_b[y0 + shift[1] : y1 + shift[1], x0 + shift[0] : x1 + shift[0]]

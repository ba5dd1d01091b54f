"""Matches between overlapping tiles: coarse shift, affine map from few large steps, then many small blocks."""

from __future__ import annotations

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
from happyneurons.stages.montage.tiles import Tile, TileReader

Floats = NDArray[np.float64]

# The coarse shift is found on strips whose longer side has about this many px …
_COARSE_PX = 400
# … but at most this much smaller than the tile, so that membranes are still there.
_MAX_SHRINK = 8


@dataclass(frozen=True)
class PairMatches:
    """Corresponding px of tiles a and b (indices), and the grey statistics of their overlap.

    matches: xy_a in tile a, xy_b in tile b. mean_*, contrast_*: grey level and standard deviation of
    the filtered picture over the same tissue in each tile. blocks: how many were tried.
    """

    a: int
    b: int
    matches: Matches
    mean_a: float
    mean_b: float
    contrast_a: float
    contrast_b: float
    blocks: int


def matches_to_arrays(found: Mapping[tuple[int, int], PairMatches]) -> dict[str, np.ndarray]:
    """Arrays for an npz: `pairs` (n, 2), `grey` (n, 5), and for each pair its points and scores (m, 5)."""
    keys = sorted(found)
    matches = [found[k].matches for k in keys]
    points = {f"points_{i:06d}": np.column_stack([m.xy_a, m.xy_b, m.score]) for i, m in enumerate(matches)}
    grey = [[p.mean_a, p.mean_b, p.contrast_a, p.contrast_b, p.blocks] for p in (found[k] for k in keys)]
    return {
        "pairs": np.array(keys, dtype=np.int64).reshape(-1, 2),
        "grey": np.array(grey, dtype=np.float64).reshape(-1, 5),
        **points,
    }


def matches_from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[tuple[int, int], PairMatches]:
    """What `matches_to_arrays` made."""
    found = {}
    for i, ((a, b), grey) in enumerate(zip(arrays["pairs"].tolist(), arrays["grey"].tolist(), strict=True)):
        points = arrays[f"points_{i:06d}"]
        matches = Matches(points[:, :2], points[:, 2:4], points[:, 4])
        mean_a, mean_b, contrast_a, contrast_b, blocks = grey
        found[a, b] = PairMatches(a, b, matches, mean_a, mean_b, contrast_a, contrast_b, int(blocks))
    return found


@dataclass(frozen=True)
class Strip:
    """Part of a tile: x0 <= x < x1, y0 <= y < y1, in px of the tile."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> tuple[int, int]:
        return self.x1 - self.x0, self.y1 - self.y0

    @property
    def origin(self) -> Floats:
        return np.array([self.x0, self.y0], dtype=np.float64)

    def of(self, picture: np.ndarray) -> np.ndarray:
        return picture[self.y0 : self.y1, self.x0 : self.x1]

    def grown(self, by: int, tile: Tile) -> Strip:
        return Strip(
            max(0, self.x0 - by), max(0, self.y0 - by), min(tile.width, self.x1 + by), min(tile.height, self.y1 + by)
        )


def overlap(tile: Tile, other: Tile, shift_xy: Floats, slack_px: float = 0.0) -> Strip:
    """Part of `tile` that shows what `other` shows; px of other = px of tile + shift, give or take the slack."""
    x0, y0 = np.maximum(0, np.ceil(-shift_xy - slack_px)).astype(int)
    x1 = min(tile.width, int(np.floor(other.width - shift_xy[0] + slack_px)))
    y1 = min(tile.height, int(np.floor(other.height - shift_xy[1] + slack_px)))
    return Strip(int(x0), int(y0), x1, y1)


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
    strip_a, strip_b = inner_a.grown(rim, first), inner_b.grown(rim + wide_search, second)
    filtered_a = dog(strip_a.of(picture_a), settings.sigma_px)
    filtered_b = dog(strip_b.of(picture_b), settings.sigma_px)

    def blocks(guess: Callable[[Floats], Floats], search: int, step: float, limit: int) -> tuple[Matches, int]:
        centres, half = _centres(inner_a, settings.block_px, search, step, limit)
        result = match_blocks(
            filtered_a, filtered_b, centres - strip_a.origin, guess(centres) - strip_b.origin,
            half_px=half, search_px=search, min_score=settings.min_score,
            max_ambiguity=_AMBIGUITY,
        )  # fmt: skip
        return Matches(result.xy_a + strip_a.origin, result.xy_b + strip_b.origin, result.score), len(centres)

    rough, _ = blocks(lambda xy: xy + shift, wide_search, 2 * settings.block_px, 48)
    agreed, course = fit_smooth(rough, least_px=2.0, most_px=settings.search_px - 1.0)
    if agreed.sum() < 3:
        course = fit_smooth(Matches(np.zeros((1, 2)), shift[None], np.ones(1)))[1]
    matches, tried = blocks(course, settings.search_px, settings.step_px, settings.max_blocks)
    agreed, _ = fit_smooth(matches, most_px=_TOLERANCE_PX)
    # Blocks of unlike tissue, or of bare resin, match too, but weakly and each somewhere else.
    strength = matches.score - settings.min_score
    if agreed.sum() < settings.min_matches or strength[agreed].sum() < 0.5 * strength.sum():
        return None
    matches = matches.select(agreed)
    grey_a, grey_b = _common(picture_a, picture_b, inner_a, matches)
    return PairMatches(
        a, b, matches, float(grey_a.mean()), float(grey_b.mean()),
        *_contrasts(filtered_a, filtered_b, strip_a, strip_b, inner_a, matches), tried,
    )  # fmt: skip


# A block that fits elsewhere almost as well says nothing.
_AMBIGUITY = 0.9
# Matches further than this off the smooth map of their seam are taken for wrong (px).
_TOLERANCE_PX = 3.0


def _centres(inner: Strip, block_px: int, search: int, step: float, limit: int) -> tuple[Floats, tuple[int, int]]:
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


def _half(length: int, block_px: int, search: int) -> int:
    """Half size of a block along a side of an overlap of that length."""
    return max(2, min(block_px // 2, (length - 2 - 2 * min(search, 3)) // 2))


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


def _common(
    picture_a: np.ndarray, picture_b: np.ndarray, inner: Strip, matches: Matches
) -> tuple[np.ndarray, np.ndarray]:
    """Grey values of both tiles over the tissue they share, px by px but for the sub-pixel part."""
    shift = np.rint(np.median(matches.xy_b - matches.xy_a, axis=0)).astype(int)
    x0, y0 = max(inner.x0, -shift[0]), max(inner.y0, -shift[1])
    x1 = min(inner.x1, picture_b.shape[1] - shift[0])
    y1 = min(inner.y1, picture_b.shape[0] - shift[1])
    return picture_a[y0:y1, x0:x1], picture_b[y0 + shift[1] : y1 + shift[1], x0 + shift[0] : x1 + shift[0]]


def _contrasts(
    filtered_a: np.ndarray, filtered_b: np.ndarray, strip_a: Strip, strip_b: Strip, inner: Strip, matches: Matches
) -> tuple[float, float]:
    """Standard deviation of the filtered pictures over the tissue they share.

    Of the filtered ones, because their noise is low and shading towards the tile's rim is gone.
    """
    moved = Matches(matches.xy_a - strip_a.origin, matches.xy_b - strip_b.origin, matches.score)
    x, y = inner.origin - strip_a.origin
    inside = Strip(int(x), int(y), int(x) + inner.size[0], int(y) + inner.size[1])
    a, b = _common(filtered_a, filtered_b, inside, moved)
    return float(a.std()), float(b.std())

"""The lens that all tiles share: found from seams, used only as far as sections agree, and known within tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.imaging.matching import Matches
from happyneurons.stages.montage.lens import TERMS, Lens, solve_lens, terms
from happyneurons.stages.montage.match import Greys, PairMatches, matches_from_arrays, matches_to_arrays
from happyneurons.stages.montage.params import MontageParams
from happyneurons.stages.montage.solve import lens_contribution, place
from happyneurons.stages.montage.tiles import Tile
from happyneurons.store.documents import Store

SIZE, STEP = 800, 720
ELASTIC = {name: MontageParams().model_dump()[name] for name in ("node_spacing_px", "membrane", "bending")}


def tiles() -> list[Tile]:
    return [Tile(r, c, c * STEP, r * STEP, SIZE, SIZE, "") for r in range(2) for c in range(2)]


def seams(lens: Lens, seed: int, bends_px: float = 0.0) -> list[PairMatches]:
    """Matches of a 2 × 2 section whose tiles are bent by a lens, and each by itself, and matched to 0.1 px.

    Tile px p shows the place p + lens(p) + bend(p) + tile's position.
    """
    rng = np.random.default_rng(seed)
    grid = tiles()
    bends = rng.normal(0, bends_px, (4, len(TERMS)))

    def shown(i: int, p: np.ndarray) -> np.ndarray:
        own = Lens(SIZE, SIZE, tuple(bends[i]))
        return p + lens.displacement(p) + own.displacement(p) + [grid[i].x_px, grid[i].y_px]

    found = []
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
        along, across = np.linspace(20, SIZE - 20, 60), rng.uniform(STEP + 10, SIZE - 10, 60)
        p = np.column_stack([across, along] if b == a + 1 else [along, across])
        goal, q = shown(a, p), p - [grid[b].x_px - grid[a].x_px, grid[b].y_px - grid[a].y_px]
        for _ in range(20):
            q = q - (shown(b, q) - goal)
        q = q + rng.normal(0, 0.1, q.shape)
        greys = Greys(p, q, rng.uniform(100, 150, len(p)), rng.uniform(100, 150, len(p)))
        found.append(PairMatches(a, b, Matches(p, q, np.full(len(p), 0.9)), greys, 1.0, 1.0, len(p)))
    return found


def lens_of(stack: list[list[PairMatches]]) -> Lens | None:
    seen = [lens_contribution(tiles(), place(tiles(), found, **ELASTIC), **ELASTIC) for found in stack]
    return solve_lens(c.data() for c in seen if c is not None)


def test_terms_have_no_affine_part_and_turn_like_vectors() -> None:
    y, x = np.mgrid[0:60, 0:90]
    xy = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    for term in terms(90, 60, xy):
        design = np.column_stack([xy, np.ones(len(xy))])
        affine = np.linalg.lstsq(design, term, rcond=None)[0]
        assert np.abs(design @ affine).max() < 0.05 * np.abs(term).max()
    radial, spiral = terms(90, 90, [[89.0, 44.5]])[:, 0]
    assert radial[1] == pytest.approx(0)
    assert radial[0] > 0
    assert spiral == pytest.approx([-radial[1], radial[0]])


def test_a_lens_is_found_from_seams_alone_and_known_in_the_middle_of_tiles() -> None:
    true = Lens(SIZE, SIZE, (1.5, -0.6))
    stack = [seams(true, seed, bends_px=0.1) for seed in range(8)]
    found = lens_of(stack)
    assert found is not None
    assert found.coefficients == pytest.approx(true.coefficients, abs=0.25)
    inside = np.stack(np.meshgrid(np.arange(100, 700, 50.0), np.arange(100, 700, 50.0)), axis=-1).reshape(-1, 2)

    def worst(lens: Lens | None) -> float:
        placed = place(tiles(), stack[0], **ELASTIC, lens=lens)
        moved = placed.warps[0].map(inside) - inside - true.displacement(inside)
        design = np.column_stack([inside, np.ones(len(inside))])
        left = moved - design @ np.linalg.lstsq(design, moved, rcond=None)[0]
        return float(np.linalg.norm(left, axis=1).max())

    # The tile's own bend (0.1 px) and the grid of nodes remain.
    assert worst(found) < 0.3
    assert worst(None) > 2 * worst(found)


def test_no_lens_is_made_of_bends_that_sections_do_not_share() -> None:
    none = Lens(SIZE, SIZE, (0.0, 0.0))
    found = lens_of([seams(none, seed, bends_px=1.0) for seed in range(8)])
    assert found is None or not found.used


def test_one_section_cannot_tell_a_lens_and_tiles_of_other_sizes_have_another() -> None:
    true = Lens(SIZE, SIZE, (1.5, 0.0))
    assert lens_of([seams(true, 1)]) is None
    assert true.fits(tiles())
    assert not Lens(SIZE, SIZE + 1, (1.5, 0.0)).fits(tiles())


def test_matches_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    found = {(p.a, p.b): p for p in seams(Lens(SIZE, SIZE, (1.0, 0.0)), 3)}
    store = Store(str(tmp_path))
    store.put_arrays("m.npz", **matches_to_arrays(found))
    again = matches_from_arrays(store.get_arrays("m.npz"))
    assert sorted(again) == sorted(found)
    for key, pair in found.items():
        assert np.array_equal(again[key].matches.xy_b, pair.matches.xy_b)
        assert again[key].blocks == pair.blocks
        assert np.array_equal(again[key].greys.b, pair.greys.b)
    assert matches_from_arrays(matches_to_arrays({})) == {}

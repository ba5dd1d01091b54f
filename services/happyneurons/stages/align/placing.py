"""From the matches of all pairs to a warp and a verdict for each section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.imaging.warp import GridWarp
from happyneurons.stages.align.params import AlignParams, Lengths
from happyneurons.stages.align.prepare import stiffness
from happyneurons.stages.align.render import least_stretch
from happyneurons.stages.align.solve import Solution, SolveSettings, apply, solve
from happyneurons.stages.align.system import NodeGrid, Pair

Doubles = NDArray[np.float64]
LoadMatches = Callable[[int, int], Mapping[str, np.ndarray]]
"""`(a, b)` → the points of a pair."""
LoadKind = Callable[[int], NDArray[np.uint8]]
"""`z` → which px of a section's working picture are tissue or artifact."""

# A section is flagged if its residual is so many times the stack's median, and more than this.
_ODD_RESIDUAL, _ODD_RESIDUAL_PX = 3.0, 1.0
_LEAST_STRETCH = 0.2
# Nodes are rounded to this many digits: no one can see the rest, and sums differ there between machines.
_DIGITS = 3


@dataclass(frozen=True)
class Warp:
    """A section's warp, section px → aligned px, both from the corner of the stack."""

    spacing_px: float
    nodes: Doubles

    def grid_warp(self) -> GridWarp:
        return GridWarp((0.0, 0.0), self.spacing_px, self.nodes)

    def moved(self, corner_xy: tuple[float, float]) -> GridWarp:
        """The warp in coordinates of a volume whose corner is not (0, 0)."""
        return GridWarp(corner_xy, self.spacing_px, self.nodes + np.asarray(corner_xy))


@dataclass(frozen=True)
class Placed:
    warps: dict[int, Warp]
    figures: dict[str, dict[str, Any]]
    """By section number, as JSON wants it: status, reason, residual_median_px, confidence, shift_px, …"""
    summary: dict[str, float]


def place_stack(
    good: Sequence[int],
    pairs: Sequence[Mapping[str, Any]],
    load_matches: LoadMatches,
    load_kind: LoadKind,
    shape_yx: tuple[int, int],
    px: Lengths,
    params: AlignParams,
) -> Placed:
    """Warps of the good sections that match a neighbour; the others are left out as failed.

    pairs: what the pairs' tasks reported.
    """
    height, width = shape_yx
    usable = [p for p in pairs if p["ok"]]
    kept = matched_sections(good, usable, params.anchor)
    found = load_pairs(kept, usable, load_matches)
    stiff = stiffnesses(kept, load_kind, shape_yx, px)
    solution = solve(found, kept, width, height, solve_settings(px, params), stiff)
    return placed(solution, good, kept, usable, found, shape_yx, px, params)


def placed(
    solution: Solution,
    good: Sequence[int],
    kept: Sequence[int],
    usable: Sequence[Mapping[str, Any]],
    found: Sequence[Pair],
    shape_yx: tuple[int, int],
    px: Lengths,
    params: AlignParams,
) -> Placed:
    """Warps and figures of a solved stack. found: points of the usable pairs, all or some of them."""
    height, width = shape_yx
    nodes = [solution.nodes(k, px.node_spacing_px) for k in range(len(kept))]
    if params.anchor is not None:
        nodes = _anchored(nodes, kept.index(params.anchor), px.node_spacing_px)
    warps = {z: Warp(px.node_spacing_px, np.round(n, _DIGITS)) for z, n in zip(kept, nodes, strict=True)}
    maps = {z: w.grid_warp() for z, w in warps.items()}
    figures, summary = judge(good, kept, usable, found, maps, (width, height))
    summary |= {"jitter_px": round(solution.jitter_px, 3), "distortion_px": round(solution.distortion_px, 3)}
    return Placed(warps, figures, summary)


def solve_settings(px: Lengths, params: AlignParams) -> SolveSettings:
    return SolveSettings(
        node_spacing_px=px.node_spacing_px, distortion_range_px=px.distortion_range_px, drift_px=px.drift_px,
        drift_range_px=px.drift_range_px, drift_persistence=px.drift_persistence, noise_px=px.noise_px,
        distortion_px=params.distortion_px,
    )  # fmt: skip


def stiffnesses(
    sections: Sequence[int], load_kind: LoadKind, shape_yx: tuple[int, int], px: Lengths
) -> list[Doubles | None]:
    """For each section None, or its stiffness at each node where artifacts may hide a tear."""
    height, width = shape_yx
    grid = NodeGrid(width, height, px.node_spacing_px)
    stiff: list[Doubles | None] = []
    for z in sections:
        s = stiffness(load_kind(z), px.factor, grid.shape, px.node_spacing_px)
        stiff.append(s if (s < 1).any() else None)
    return stiff


def matched_sections(good: Sequence[int], usable: Sequence[Mapping[str, Any]], anchor: int | None) -> list[int]:
    """Those of the good sections that a usable pair holds. Raises UserError if the anchor is not among them."""
    matched = {p["a"] for p in usable} | {p["b"] for p in usable}
    # A stack of one section has nothing to match and stays as it is.
    kept = [z for z in good if z in matched or len(good) == 1]
    if anchor is not None and anchor not in kept:
        raise UserError(
            f"anchor: section {anchor} has no picture or matches no neighbour; choose another",
            [("params.anchor", "a section that matches its neighbours")],
        )
    return kept


def load_pairs(
    kept: Sequence[int], usable: Sequence[Mapping[str, Any]], load_matches: LoadMatches, most: int | None = None
) -> list[Pair]:
    """Points of the usable pairs, at most so many of each; their sections are counted along `kept`."""
    index = {z: k for k, z in enumerate(kept)}
    pairs = []
    for report in usable:
        points = load_matches(report["a"], report["b"])
        a, b = index[report["a"]], index[report["b"]]
        some = slice(None, None, 1 if most is None else -(-len(points["a_xy"]) // most) or 1)
        pairs.append(Pair(a, b, points["a_xy"][some], points["b_xy"][some], points["correlation"][some] ** 2))
    return pairs


def _anchored(nodes: Sequence[Doubles], anchor: int, spacing_px: float) -> list[Doubles]:
    """All warps followed by the rigid map that brings the anchor back to its own place and orientation."""
    ny, nx = nodes[anchor].shape[:2]
    source = np.stack(np.meshgrid(np.arange(nx) * spacing_px, np.arange(ny) * spacing_px), axis=-1).reshape(-1, 2)
    target = nodes[anchor].reshape(-1, 2)
    a, b = target - target.mean(axis=0), source - source.mean(axis=0)
    angle = np.arctan2(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), np.sum(a * b))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = source.mean(axis=0) - turn @ target.mean(axis=0)
    rigid = np.column_stack([turn, shift])
    return [apply(rigid, n) for n in nodes]


def judge(
    good: Sequence[int],
    kept: Sequence[int],
    reports: Sequence[Mapping[str, Any]],
    pairs: Sequence[Pair],
    maps: Mapping[int, GridWarp],
    size: tuple[int, int],
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Figures of each good section (as in `Placed`) and of the stack, whatever placed it.

    maps: of the kept sections, section px → aligned px; pairs: the points of `reports`; size: (width, height).
    """
    residuals: dict[int, list[Doubles]] = {z: [] for z in kept}
    confidence = dict.fromkeys(kept, 0.0)
    joined: dict[int, set[int]] = {z: set() for z in kept}
    adjacent = []
    for report, pair in zip(reports, pairs, strict=True):
        a, b = report["a"], report["b"]
        joined[a].add(1)
        joined[b].add(-1)
        if pair.b - pair.a != 1:
            continue
        miss = np.linalg.norm(maps[b].map(pair.b_xy) - maps[a].map(pair.a_xy), axis=1)
        adjacent.append(miss)
        for z in (a, b):
            residuals[z].append(miss)
            confidence[z] = max(confidence[z], report["found"])
    all_misses = np.concatenate(adjacent) if adjacent else np.zeros(1)
    typical = float(np.median(all_misses))
    centre = np.array([[(size[0] - 1) / 2, (size[1] - 1) / 2]])
    figures: dict[str, dict[str, Any]] = {}
    scales, shifts, linears = [], [], []
    for position, z in enumerate(kept):
        misses = np.concatenate(residuals[z]) if residuals[z] else None
        shift = float(np.linalg.norm(maps[z].map(centre) - centre))
        linear = _linear(maps[z])
        scale = _scale(linear)
        shifts.append(shift)
        scales.append(scale)
        linears.append(linear)
        reasons = []
        median = None if misses is None else float(np.median(misses))
        if median is not None and median > max(_ODD_RESIDUAL_PX, _ODD_RESIDUAL * typical):
            reasons.append(f"it lies {median:.1f} px from its neighbours, others {typical:.1f} px")
        if (position > 0 and -1 not in joined[z]) or (position < len(kept) - 1 and 1 not in joined[z]):
            reasons.append("it matches its neighbours on one side only")
        stretch = least_stretch(maps[z])
        if stretch < _LEAST_STRETCH:
            reasons.append(f"its warp shrinks a place to {stretch:.2f} of its area")
        figures[str(z)] = {
            "status": "flagged" if reasons else "ok",
            "confidence": round(confidence[z], 4),
            "shift_px": round(shift, 3),
            "scale": round(scale, 5),
            **({"residual_median_px": round(median, 3)} if median is not None else {}),
            **({"residual_p95_px": round(float(np.percentile(misses, 95)), 3)} if misses is not None else {}),
            **({"reason": "; ".join(reasons)} if reasons else {}),
        }
    for z in good:
        if z not in maps:
            figures[str(z)] = {"status": "failed", "reason": "it matches none of its neighbours"}
    summary = {
        "residual_median_px": round(typical, 3),
        "residual_p95_px": round(float(np.percentile(all_misses, 95)), 3),
        "max_drift_px": round(max(shifts, default=0.0), 3),
        "scale_error": round(abs(_scale(np.mean(linears, axis=0)) - 1), 6) if linears else 0.0,
        "section_scale_error_max": round(max((abs(s - 1) for s in scales), default=0.0), 5),
    }
    return figures, summary


def _linear(warp: GridWarp) -> Doubles:
    """(2, 2) linear part of the affine map nearest to a warp."""
    ny, nx = warp.nodes.shape[:2]
    source = np.stack(np.meshgrid(np.arange(nx), np.arange(ny)), axis=-1).reshape(-1, 2) * warp.spacing_px
    source = source - source.mean(axis=0)
    target = warp.nodes.reshape(-1, 2)
    normal, right = (np.einsum("ni,nj->ij", source, x) for x in (source, target))
    return np.asarray(np.linalg.solve(normal, right).T)


def _scale(linear: Doubles) -> float:
    return float(np.sqrt(abs(linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0])))

"""From the matches of all pairs to a warp and a verdict for each section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.imaging.cut_warp import HIDDEN, CutWarp
from happyneurons.imaging.filling import filled
from happyneurons.imaging.fits import scale_and_rotation
from happyneurons.imaging.warp import GridWarp
from happyneurons.stages.align.cut_mesh import Cut
from happyneurons.stages.align.params import AlignParams, Lengths
from happyneurons.stages.align.prepare import TISSUE, stiffness
from happyneurons.stages.align.render import least_stretch
from happyneurons.stages.align.solve import Solution, SolveSettings, apply, solve
from happyneurons.stages.align.system import NodeGrid, Pair

Doubles = NDArray[np.float64]

# A section is flagged if its residual is so many times the stack's median, and more than this.
_ODD_RESIDUAL, _ODD_RESIDUAL_PX = 3.0, 1.0
_LEAST_STRETCH = 0.2
# Nodes are rounded to this many digits: no one can see the rest, and sums differ there between machines.
_DIGITS = 3


@dataclass(frozen=True)
class MatchedStack:
    """A stack whose pairs are matched, ready to be placed.

    good: sections with a picture; pairs: what the pairs' tasks reported.
    """

    good: Sequence[int]
    pairs: Sequence[Mapping[str, Any]]
    load_matches: Callable[[int, int], Mapping[str, np.ndarray]]
    """`(a, b)` → the points of a pair."""
    load_kind: Callable[[int], NDArray[np.uint8]]
    """`z` → which px of a section's working picture are tissue or artifact."""
    load_cut: Callable[[int], Cut | None]
    """`z` → where a section is torn, None if nowhere."""
    shape_yx: tuple[int, int]
    px: Lengths
    params: AlignParams

    @cached_property
    def usable(self) -> list[Mapping[str, Any]]:
        """The pairs that count."""
        return [p for p in self.pairs if p["ok"]]

    @cached_property
    def kept(self) -> list[int]:
        """The good sections that match another one. Raises UserError if the anchor is not among them."""
        matched = {p["a"] for p in self.usable} | {p["b"] for p in self.usable}
        # A stack of one section has nothing to match and stays as it is.
        kept = [z for z in self.good if z in matched or len(self.good) == 1]
        anchor = self.params.anchor
        if anchor is not None and anchor not in kept:
            raise UserError(
                f"anchor: section {anchor} has no picture or matches no neighbour; choose another",
                [("params.anchor", "a section that matches its neighbours")],
            )
        return kept

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a section."""
        return self.shape_yx[1], self.shape_yx[0]

    @property
    def grid(self) -> NodeGrid:
        return NodeGrid(*self.size, self.px.node_spacing_px)

    @property
    def settings(self) -> SolveSettings:
        px = self.px
        return SolveSettings(
            node_spacing_px=px.node_spacing_px, distortion_range_px=px.distortion_range_px, drift_px=px.drift_px,
            drift_range_px=px.drift_range_px, drift_persistence=px.drift_persistence, noise_px=px.noise_px,
            distortion_px=self.params.distortion_px,
        )  # fmt: skip

    def points(self, sections: Sequence[int], most: int | None = None) -> list[Pair]:
        """Points of the usable pairs among some sections, at most so many of each; sections are counted along them."""
        index = {z: k for k, z in enumerate(sections)}
        found = []
        for report in self.usable:
            if report["a"] in index and report["b"] in index:
                points = self.load_matches(report["a"], report["b"])
                some = slice(None, None, 1 if most is None else -(-len(points["a_xy"]) // most) or 1)
                a_xy, b_xy, correlation = (points[name][some] for name in ("a_xy", "b_xy", "correlation"))
                seen = self._on_tissue(report["a"], a_xy) & self._on_tissue(report["b"], b_xy)
                found.append(
                    Pair(index[report["a"]], index[report["b"]], a_xy[seen], b_xy[seen], correlation[seen] ** 2)
                )
        return found

    def _on_tissue(self, z: int, xy: Doubles) -> NDArray[np.bool_]:
        """(n,) whether px of a section lie beside its cuts, not on them."""
        cut = self.load_cut(z)
        return np.ones(len(xy), dtype=bool) if cut is None else cut.sheet_at(xy) != HIDDEN

    def cuts(self, sections: Sequence[int]) -> list[Cut | None]:
        return [self.load_cut(z) for z in sections]

    def stiffnesses(self, sections: Sequence[int]) -> list[Doubles | None]:
        """For each section None, or its stiffness at each node where artifacts may hide a tear."""
        stiff: list[Doubles | None] = []
        for z in sections:
            kind, cut = self.load_kind(z), self.load_cut(z)
            if cut is not None:
                # Both sides of a cut are free already.
                kind = np.where(cut.sheet_of == HIDDEN, TISSUE, kind).astype(np.uint8)
            s = stiffness(kind, self.px.factor, self.grid.shape, self.px.node_spacing_px)
            stiff.append(s if (s < 1).any() else None)
        return stiff


@dataclass(frozen=True)
class Placed:
    """warps: section px → aligned px, both from the corner of the stack, of the sections that have a place."""

    warps: Mapping[int, GridWarp | CutWarp]
    figures: dict[str, dict[str, Any]]
    """By section number, as JSON wants it: status, reason, residual_median_px, confidence, shift_px, …"""
    summary: dict[str, float]


def place_stack(stack: MatchedStack) -> Placed:
    """Warps of the good sections that match a neighbour; the others are left out as failed."""
    found = stack.points(stack.kept)
    solution = solve(
        found, stack.kept, *stack.size, stack.settings, stack.stiffnesses(stack.kept), stack.cuts(stack.kept)
    )
    return placed(stack, solution, found)


def placed(stack: MatchedStack, solution: Solution, found: Sequence[Pair]) -> Placed:
    """Warps and figures of a solved stack. found: points of the usable pairs, all or some of them."""
    spacing, anchor = stack.px.node_spacing_px, stack.params.anchor
    nodes = [solution.nodes(k, spacing) for k in range(len(stack.kept))]
    if anchor is not None:
        nodes = _anchored(nodes, stack.kept.index(anchor), spacing)
    warps = {z: _warp(n, spacing, stack.load_cut(z)) for z, n in zip(stack.kept, nodes, strict=True)}
    figures, summary = judge(stack, found, warps)
    summary |= {"jitter_px": round(solution.jitter_px, 3), "distortion_px": round(solution.distortion_px, 3)}
    return Placed(warps, figures, summary)


def _warp(nodes: Doubles, spacing_px: float, cut: Cut | None) -> GridWarp | CutWarp:
    """nodes: (sheets, ny, nx, 2), NaN where a sheet does not reach; there it goes on smoothly."""
    sheets = [GridWarp((0.0, 0.0), spacing_px, np.round(nodes[0], _DIGITS))]
    if cut is None:
        return sheets[0]
    sources = sheets[0].sources()
    for targets in nodes[1:]:
        known = np.isfinite(targets[..., 0])
        sheets.append(sheets[0].with_nodes(np.round(filled(sources, np.nan_to_num(targets), known), _DIGITS)))
    return CutWarp(sheets, cut.sheet_of, (0.0, 0.0), cut.factor)


def _anchored(nodes: Sequence[Doubles], anchor: int, spacing_px: float) -> list[Doubles]:
    """All warps followed by the rigid map that brings the anchor back to its own place and orientation."""
    ny, nx = nodes[anchor].shape[1:3]
    source = np.stack(np.meshgrid(np.arange(nx) * spacing_px, np.arange(ny) * spacing_px), axis=-1).reshape(-1, 2)
    target = nodes[anchor][0].reshape(-1, 2)
    a, b = target - target.mean(axis=0), source - source.mean(axis=0)
    angle = np.arctan2(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), np.sum(a * b))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = source.mean(axis=0) - turn @ target.mean(axis=0)
    rigid = np.column_stack([turn, shift])
    return [apply(rigid, n) for n in nodes]


def judge(
    stack: MatchedStack, pairs: Sequence[Pair], maps: Mapping[int, GridWarp | CutWarp]
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Figures of each good section (as in `Placed`) and of the stack, whatever placed it.

    maps: of the kept sections, section px → aligned px; pairs: points of the usable pairs.
    """
    good, kept, reports, size = stack.good, stack.kept, stack.usable, stack.size
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
        whole = _whole(maps[z])
        shift = float(np.linalg.norm(whole.map(centre) - centre))
        linear = _linear(whole)
        scale = scale_and_rotation(linear)[0]
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
        "scale_error": round(abs(scale_and_rotation(np.mean(linears, axis=0))[0] - 1), 6) if linears else 0.0,
        "section_scale_error_max": round(max((abs(s - 1) for s in scales), default=0.0), 5),
    }
    return figures, summary


def _whole(warp: GridWarp | CutWarp) -> GridWarp:
    """The warp without cuts that is nearest to one with them."""
    return warp.sheets[0] if isinstance(warp, CutWarp) else warp


def _linear(warp: GridWarp) -> Doubles:
    """(2, 2) linear part of the affine map nearest to a warp."""
    ny, nx = warp.nodes.shape[:2]
    source = np.stack(np.meshgrid(np.arange(nx), np.arange(ny)), axis=-1).reshape(-1, 2) * warp.spacing_px
    source = source - source.mean(axis=0)
    target = warp.nodes.reshape(-1, 2)
    normal, right = (np.einsum("ni,nj->ij", source, x) for x in (source, target))
    return np.asarray(np.linalg.solve(normal, right).T)

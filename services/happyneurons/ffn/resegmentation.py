"""Do two segments belong together? The network is asked again, around the place where they meet.

Method: resegmentation of google/ffn (Januszewski et al., Nature Methods 15, 2018, "agglomeration").
In a small box around the decision point the two segments are taken away and all others stay as
obstacles. The object is then flooded twice, from a seed deep inside the one and from a seed deep
inside the other. If both belong to one neurite, each flood recovers both segments, and the two
floods are nearly the same object; a true border stops each of them.

Segments that pass through the box more than once are judged by the piece that lies nearest to the
decision point; their other pieces are neither obstacles nor counted. Voxels are counted in the
middle of the box only, without a rim of a third of the field of view: what is that near to the box's
faces, the network saw from one side only, or not at all. All arrays are (z, y, x).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.canvas import Canvas, Step, logit
from happyneurons.ffn.options import InferenceOptions
from happyneurons.store.triples import Triple

Mask = NDArray[np.bool_]
Start = Literal["a", "b"]

_FLOODED, _OBSTACLE = 1, 2  # a canvas numbers what it finds 1, 2, …; each canvas here finds one object
_RECOVERED = 0.5  # of its own segment: a flood that finds less started in a bad place
_WAS_INSIDE, _IS_OUTSIDE = logit(0.8), logit(0.5)


@dataclass(frozen=True)
class Flood:
    """One run of the network.

    seed_zyx: where it started, voxels of the box.
    own, other: share recovered of the segment it started in, and of the other one.
    deleted: voxels that a step took back (probability from 0.8 or more to less than 0.5), summed
        over the steps, relative to the object's voxels. The network is unsure there.
    leaked: share of the object's voxels that it had to leave alone, for they belong to other segments
        or are excluded.
    steps: network calls. voxels: size of the object in the whole box.
    """

    seed_zyx: Triple
    own: float
    other: float
    deleted: float
    leaked: float
    steps: int
    voxels: int


@dataclass(frozen=True)
class PairScores:
    """from_a, from_b: None if that segment has no voxel where the field of view fits, or was not asked.

    iou: voxels that both floods found relative to those that either found; None unless both ran.
    voxels_a, voxels_b: size of the judged pieces in the middle of the box.
    """

    from_a: Flood | None
    from_b: Flood | None
    iou: float | None
    voxels_a: int
    voxels_b: int

    @property
    def steps(self) -> int:
        return sum(flood.steps for flood in (self.from_a, self.from_b) if flood is not None)


class _CountingStep:
    """A step that counts its calls and the voxels that they take back."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.architecture = step.architecture
        self.calls = self.deleted = 0

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        logits = self._step(image, seed)
        self.calls += 1
        self.deleted += int(((seed >= _WAS_INSIDE) & (logits < _IS_OUTSIDE)).sum())
        return logits


class PairResegmentation:
    """The box around one decision point, ready to be flooded.

    image: normalized float32. labels: ids of the same shape, 0 is background; a, b: the two ids.
    point_zyx: decision point in the box. excluded: True where nothing is to be segmented.
    voxel_size_zyx: for depths; any unit.
    attempts: seeds that are tried in a segment until a flood recovers at least half of it; a seed
        on a mitochondrion, say, leads nowhere.
    Raises ValueError if a or b does not occur.
    """

    def __init__(
        self,
        image: NDArray[np.float32],
        labels: np.ndarray,
        a: int,
        b: int,
        point_zyx: Triple,
        step: Step,
        options: InferenceOptions,
        *,
        excluded: Mask | None = None,
        voxel_size_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0),
        attempts: int = 2,
    ) -> None:
        self._image, self._step, self._excluded, self._voxel_size = image, step, excluded, voxel_size_zyx
        self._attempts = attempts
        # Everything a flood finds counts here, however small, and seeds may touch their neighbours.
        self._options = options.model_copy(update={"min_segment_size": 1, "min_boundary_dist_xyz": (0, 0, 0)})
        self._obstacles = (labels != 0) & (labels != a) & (labels != b)
        self.a = nearest_piece(labels == a, point_zyx, voxel_size_zyx)
        self.b = nearest_piece(labels == b, point_zyx, voxel_size_zyx)
        rims = [f // 3 for f in step.architecture.fov_zyx]
        self.middle = tuple(slice(r, n - r) for r, n in zip(rims, labels.shape, strict=True))

    def _seeds(self, piece: Mask) -> Iterator[Triple]:
        """The deepest voxel of a piece among those where the field of view fits into the box, then others.

        Each one is at least a quarter of the field of view away from those before it, along an axis.
        """
        from scipy import ndimage

        fov = self._step.architecture.fov_zyx
        inner = tuple(slice(f // 2, n - f // 2) for f, n in zip(fov, piece.shape, strict=True))
        allowed = piece if self._excluded is None else piece & ~self._excluded
        depth = ndimage.distance_transform_edt(allowed, sampling=self._voxel_size)[inner]
        for _ in range(self._attempts):
            if depth.size == 0 or not depth.any():
                return
            place = np.unravel_index(int(depth.argmax()), depth.shape)
            z, y, x = (int(p) + f // 2 for p, f in zip(place, fov, strict=True))
            yield (z, y, x)
            depth[
                tuple(slice(max(int(p) - f // 4, 0), int(p) + f // 4 + 1) for p, f in zip(place, fov, strict=True))
            ] = 0

    def flood(self, start: Start) -> tuple[Flood, Mask] | None:
        """Flood from segment "a" or "b": figures and the object's mask, (z, y, x).

        Of several attempts the one that recovers most of its own segment counts. None if the field
        of view fits nowhere in the segment.
        """
        own, other = (self.a, self.b) if start == "a" else (self.b, self.a)
        best: tuple[Flood, Mask] | None = None
        steps = 0
        for seed in self._seeds(own):
            flood, found = self._flood(seed, own, other)
            steps += flood.steps
            if best is None or flood.own > best[0].own:
                best = flood, found
            if flood.own >= _RECOVERED:
                break
        return None if best is None else (replace(best[0], steps=steps), best[1])

    def _flood(self, seed: Triple, own: Mask, other: Mask) -> tuple[Flood, Mask]:
        step = _CountingStep(self._step)
        canvas = Canvas(self._image, step, self._options, self._excluded)
        canvas.segmentation[self._obstacles] = _OBSTACLE
        canvas.segment(seed)
        found = canvas.segmentation == _FLOODED
        voxels, overlapping = int(found.sum()), int(canvas.counters["voxels_overlapping"])
        figures = Flood(
            seed,
            own=_share(found[self.middle], own[self.middle]),
            other=_share(found[self.middle], other[self.middle]),
            deleted=step.deleted / max(voxels, 1),
            leaked=overlapping / max(voxels + overlapping, 1),
            steps=step.calls,
            voxels=voxels,
        )
        return figures, found

    def scores(self, *, first: Start | None = None, skip_below: float = 0.0) -> PairScores:
        """Flood from one segment, then from the other.

        first: where to start; None is the smaller piece, whose flood tells most.
        skip_below: the second flood is left out if the first one recovers less than this of the
        other segment: the two will not agree any more.
        """
        sizes = {"a": int(self.a[self.middle].sum()), "b": int(self.b[self.middle].sum())}
        if first is None:
            first = "b" if sizes["b"] < sizes["a"] else "a"
        order: list[Start] = ["a", "b"] if first == "a" else ["b", "a"]
        floods: dict[Start, tuple[Flood, Mask]] = {}
        for start in order:
            result = self.flood(start)
            if result is not None:
                floods[start] = result
                if result[0].other < skip_below:
                    break
        iou = None
        if len(floods) == 2:
            found_a, found_b = (floods[name][1][self.middle] for name in ("a", "b"))
            iou = float((found_a & found_b).sum()) / max(int((found_a | found_b).sum()), 1)
        figures = {name: flood for name, (flood, _) in floods.items()}
        return PairScores(figures.get("a"), figures.get("b"), iou, sizes["a"], sizes["b"])


def nearest_piece(mask: Mask, point_zyx: Triple, voxel_size_zyx: tuple[float, float, float]) -> Mask:
    """The 26-connected part of a mask that holds its voxel nearest to a point.

    Raises ValueError if the mask is empty.
    """
    from scipy import ndimage

    voxels = np.argwhere(mask)
    if len(voxels) == 0:
        raise ValueError("the segment does not occur in the box")
    distance = (((voxels - point_zyx) * voxel_size_zyx) ** 2).sum(axis=1)
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return np.asarray(parts == parts[tuple(voxels[int(distance.argmin())])])


def _share(found: Mask, piece: Mask) -> float:
    return float((found & piece).sum()) / max(int(piece.sum()), 1)

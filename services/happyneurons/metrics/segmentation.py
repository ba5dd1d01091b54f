"""Figures that compare a segmentation with ground truth.

All of them come from one sparse table of label pairs, which can be accumulated block by block:
nothing here needs the volumes at once. Label 0 is background. Voxels that are background in the
truth are never scored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from happyneurons.metrics.contingency import Contingency


@dataclass(frozen=True)
class SegmentationScores:
    """Figures of one comparison. Lower VOI and adapted Rand error are better.

    voi_split: H(segmentation | truth) in bits: what splits cost.
    voi_merge: H(truth | segmentation) in bits: what mergers cost.
    adapted_rand_error: 1 - F score of `rand_precision` and `rand_recall`.
    rand_precision: of the voxel pairs that share a segment, the share that belongs together
        (falls with mergers; scikit-image returns this one as its "recall").
    rand_recall: of the voxel pairs that belong together, the share that shares a segment
        (falls with splits; scikit-image's "precision").
    """

    voi_split: float
    voi_merge: float
    adapted_rand_error: float
    rand_precision: float
    rand_recall: float
    voxels: int
    segments: int
    truth_objects: int

    @property
    def voi(self) -> float:
        return self.voi_split + self.voi_merge

    def as_dict(self) -> dict[str, float]:
        return {"voi": self.voi, **asdict(self)}


def truth_table(segmentation: np.ndarray, truth: np.ndarray) -> Contingency:
    """Table (truth, segment) of the voxels with truth > 0. Arrays of the same shape.

    Unsegmented voxels (segment 0) stay in it: they make the coverage.
    """
    inside = truth > 0
    return Contingency.of(truth[inside], segmentation[inside])


def coverage(table: Contingency) -> float:
    """Share of the truth's voxels that are segmented; 0 for an empty table."""
    total = int(table.counts.sum())
    return float(table.counts[table.second > 0].sum() / total) if total else 0.0


def scores(table: Contingency) -> SegmentationScores:
    """Figures over the voxels that are labelled in both; NaN where there are none.

    Methods: variation of information (Meila 2007) split as in Nunez-Iglesias et al. 2013;
    adapted Rand error of the SNEMI3D challenge (Arganda-Carreras et al. 2015), which counts
    unordered pairs of different voxels.
    """
    both = table.where((table.first > 0) & (table.second > 0))
    _, objects = both.first_totals()
    _, segments = both.second_totals()
    # Sorted by size, so that other numbers for the same objects change no figure, not even its last bit.
    pairs, t, s = (np.sort(counts).astype(np.float64) for counts in (both.counts, objects, segments))
    n = float(pairs.sum())
    if n == 0:
        nan = float("nan")
        return SegmentationScores(nan, nan, nan, nan, nan, 0, 0, 0)
    # H(A|B) = H(A,B) - H(B), with H(X) = log2 n - sum(x log2 x) / n.
    joint, of_t, of_s = (float((v * np.log2(v)).sum() / n) for v in (pairs, t, s))
    together, in_truth, in_segments = (float((v * v).sum() - v.sum()) for v in (pairs, t, s))
    return SegmentationScores(
        voi_split=max(0.0, of_t - joint),
        voi_merge=max(0.0, of_s - joint),
        adapted_rand_error=1.0 - _share(2.0 * together, in_truth + in_segments),
        rand_precision=_share(together, in_segments),
        rand_recall=_share(together, in_truth),
        voxels=int(n),
        segments=len(segments),
        truth_objects=len(objects),
    )


def _share(part: float, whole: float) -> float:
    # No pair at all (every object is one voxel): nothing is wrong.
    return part / whole if whole > 0 else 1.0


def fill_nearest(segmentation: np.ndarray, reach: int | None = None) -> np.ndarray:
    """Copy in which unsegmented voxels take the id of the nearest segmented voxel (Euclidean).

    (z, y, x) array, any integer type; an array without segments comes back as it is. reach: voxels
    farther than this from any segment stay 0, so that what surrounds an array by more than `reach`
    changes nothing in it (but for which of equally near segments is taken). Needs 13 times the
    number of voxels in bytes on top of the arrays.
    """
    from scipy import ndimage

    empty = segmentation == 0
    if not empty.any() or empty.all():
        return segmentation.copy()
    nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    filled = np.asarray(segmentation[tuple(nearest)])
    if reach is not None:
        holes = np.nonzero(empty)
        squared = sum((nearest[axis][holes].astype(np.int64) - holes[axis]) ** 2 for axis in range(3))
        far = np.asarray(squared) > reach * reach
        filled[tuple(place[far] for place in holes)] = 0
    return filled


def connected_objects(labels: np.ndarray) -> np.ndarray:
    """Labels of the 26-connected parts of each label, uint32, 0 stays 0.

    Bodies that enter a crop twice count as two objects: nothing inside the crop connects them.
    """
    import cc3d

    # cc3d 3.26 gives wrong labels for some views: of a part of an array that is one voxel thick, for one.
    unsigned = np.ascontiguousarray(labels.astype(f"u{labels.dtype.itemsize}", copy=False))
    return np.asarray(cc3d.connected_components(unsigned, connectivity=26, out_dtype=np.uint32))

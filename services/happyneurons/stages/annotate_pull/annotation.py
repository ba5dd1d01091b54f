"""What an annotation gives, opened and held against what it is an annotation of; once for each process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from happyneurons.annotations.archive import AnnotationFile
from happyneurons.annotations.nml import Tree, VolumeEntry
from happyneurons.annotations.volume_data import VolumeData, open_volume_data
from happyneurons.errors import UserError
from happyneurons.formats.base import Sizes, VolumeInfo
from happyneurons.jobs.stage import Context
from happyneurons.stages.annotate_pull.params import AnnotatePullParams
from happyneurons.store.triples import Triple, triple
from happyneurons.store.volumes import open_volume

if TYPE_CHECKING:
    from happyneurons.store.volumes import Hdf5Volume, PrecomputedVolume

SIZE_TOLERANCE = 1e-3
"""WEBKNOSSOS writes voxel sizes as float32 in places."""


class Annotation:
    """Raises UserError if it is not what the parameters and inputs say."""

    def __init__(self, context: Context[AnnotatePullParams]) -> None:
        self.params, self._context = context.params, context
        self._limit = int(self.params.max_unpacked_gb * 1e9)
        self.file = AnnotationFile(self.params.source, context.scratch, self._limit)
        self.dataset = context.optional_input("dataset")
        self.shift_xyz: Triple = triple(
            self.params.shift_xyz if self.dataset is None else self.dataset.properties.get("shift_xyz", (0, 0, 0))
        )
        self._check_dataset()
        pattern = re.compile(self.params.trees)
        self.trees: list[Tree] = [t for t in self.file.nml.trees if len(t.node_ids) and pattern.search(t.name)]
        self.take = self._taken()
        self.volume: VolumeData | None = None
        self.fallback: PrecomputedVolume | Hdf5Volume | None = None
        self.labels: VolumeInfo | None = None
        if "labels" in self.take:
            self._open_labels()

    @staticmethod
    def of(context: Context[AnnotatePullParams]) -> Annotation:
        found: Annotation = context.once("annotation", lambda: Annotation(context))
        return found

    @property
    def voxel_size_nm_xyz(self) -> Sizes:
        known = None if self.dataset is None else self.dataset.voxel_size_nm_xyz
        return self.params.voxel_size_nm_xyz or known or self.file.nml.voxel_size_nm_xyz

    def _check_dataset(self) -> None:
        where, nml = self.params.source, self.file.nml
        wanted = self.params.dataset_name or (self.dataset and self.dataset.properties.get("name"))
        if wanted and nml.dataset != wanted:
            raise UserError(
                f"{where}: an annotation of the dataset {nml.dataset!r}, not of {wanted!r}; if that was renamed on its "
                f"server: params.dataset_name={nml.dataset}"
            )
        if not np.allclose(nml.voxel_size_nm_xyz, self.voxel_size_nm_xyz, rtol=SIZE_TOLERANCE):
            if self.params.voxel_size_nm_xyz is None:
                raise UserError(
                    f"{where}: its voxels are {nml.voxel_size_nm_xyz} nm, those of the dataset that was pushed "
                    f"{self.voxel_size_nm_xyz} nm; if the annotation's size is wrong, give params.voxel_size_nm_xyz"
                )

    def _taken(self) -> set[str]:
        params, nml, where = self.params, self.file.nml, self.params.source
        lost = [v.name for v in nml.volumes if not self.file.has_data(v)]
        with_data = [v for v in nml.volumes if self.file.has_data(v)]
        if params.take:
            if "labels" in params.take and not with_data:
                raise UserError(f"{where}: {self._no_volume(lost)}")
            if {"points", "skeletons"} & set(params.take) and not self.trees:
                raise UserError(
                    f"{where}: it has no tree with nodes"
                    + (f" whose name matches {params.trees!r}" if params.trees else "")
                    + (f"; there are {', '.join(t.name for t in nml.trees[:20])}" if nml.trees else "")
                )
            if "skeletons" in params.take and not any(len(t.edges) for t in self.trees):
                raise UserError(f"{where}: no tree has an edge; its nodes are points (take: [points])")
            return set(params.take)
        if lost and not with_data:
            raise UserError(f"{where}: {self._no_volume(lost)}; or take points and skeletons alone (params.take)")
        taken = {"points"} if self.trees else set()
        if any(len(t.edges) for t in self.trees):
            taken.add("skeletons")
        if with_data:
            taken.add("labels")
        if not taken:
            raise UserError(f"{where}: there is nothing in it, neither trees nor volume data")
        return taken

    def _no_volume(self, lost: list[str]) -> str:
        if not lost:
            return "an annotation without volume data: it has no volume layer"
        return (
            f"an annotation without volume data: the data of {', '.join(lost)} was left out when it was downloaded; "
            "download it again with volume data"
        )

    def _entry(self) -> VolumeEntry:
        found = [v for v in self.file.nml.volumes if self.file.has_data(v)]
        names = ", ".join(v.name for v in found)
        if self.params.layer is not None:
            found = [v for v in found if v.name == self.params.layer]
            if not found:
                raise UserError(f"{self.params.source}: no layer {self.params.layer!r} with data; it has {names}")
        if len(found) != 1:
            raise UserError(f"{self.params.source}: it has {len(found)} volume layers; choose params.layer: {names}")
        return found[0]

    def _open_labels(self) -> None:
        params, context, entry = self.params, self._context, self._entry()
        where = f"{params.source}, layer {entry.name}"
        folder = context.scratch / "volume"
        self.file.unpack(entry, folder)
        self.volume = open_volume_data(folder, where, self.voxel_size_nm_xyz, params.mip, context.threads)
        mag = (1, 1, 1) if self.volume is None else self.volume.mag_xyz
        if any(s % m for s, m in zip(self.shift_xyz, mag, strict=True)):
            raise UserError(f"{where}: the shift {self.shift_xyz} is no multiple of its magnification {mag}")
        sx, sy, sz = (s * m for s, m in zip(self.voxel_size_nm_xyz, mag, strict=True))
        below = context.optional_input("fallback")
        if below is not None:
            self.fallback = open_volume(below.data_uri)
            if not np.allclose(self.fallback.voxel_size_nm_xyz, (sx, sy, sz), rtol=SIZE_TOLERANCE):
                raise UserError(
                    f"{where}: the input fallback has voxels of {self.fallback.voxel_size_nm_xyz} nm, the layer of "
                    f"{(sx, sy, sz)} nm"
                )
            if self.volume is not None and max(self.volume.block_zyx) > 32:
                raise UserError(
                    f"{where}: files of {self.volume.block_zyx} voxels do not tell which ones were changed (WEBKNOSSOS "
                    "gives 32³); leave out the input fallback"
                )
        elif entry.fallback and not params.changes_only:
            raise UserError(
                f"{where}: it corrects the layer {entry.fallback!r} and holds changed blocks only; give that "
                "segmentation as the input fallback, or params.changes_only=true for the changed blocks alone"
            )
        start, stop = self._extent(where, mag)
        self.labels = VolumeInfo(start, stop, (sx, sy, sz), np.dtype(np.uint64), True)

    def _extent(self, where: str, mag: Triple) -> tuple[Triple, Triple]:
        """[start, stop) of the labels, zyx, in voxels of the magnification, as they are written."""
        params, boxes = self.params, self.file.nml.boxes
        shift = np.array(self.shift_xyz)
        if params.bounds_xyz is not None:
            low, high = (np.array(p) for p in params.bounds_xyz)
        elif params.bounding_box is not None:
            if params.bounding_box not in boxes:
                raise UserError(
                    f"{params.source}: no bounding box {params.bounding_box!r}; there are {', '.join(boxes) or 'none'}"
                )
            low, high = (np.array(p) - shift for p in boxes[params.bounding_box])
        elif self.dataset is not None and self.dataset.bounds is not None:
            bounds = self.dataset.bounds
            low, high = np.array(bounds.minimum_xyz) - shift, np.array(bounds.maximum_xyz) - shift
        elif self.fallback is not None:
            return self.fallback.start_zyx, self.fallback.stop_zyx
        elif self.volume is not None and self.volume.box is not None:
            moved = shift[::-1] // mag[::-1]
            return triple(self.volume.box[0] - moved), triple(self.volume.box[1] - moved)
        else:
            raise UserError(f"{where}: nobody painted anything in it; take points and skeletons alone (params.take)")
        if (low >= high).any():
            raise UserError(f"{where}: the extent from {tuple(low)} to {tuple(high)} (xyz) is empty")
        return triple((low // mag)[::-1]), triple((-(-high // mag))[::-1])

    def read_labels(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        """(z, y, x) uint64 labels of a box. Raises TaskError where data is damaged."""
        if self.volume is None:
            return self._below(start_zyx, stop_zyx)
        moved = [s // m for s, m in zip(self.shift_xyz[::-1], self.volume.mag_xyz[::-1], strict=True)]
        low, high = triple(np.add(start_zyx, moved)), triple(np.add(stop_zyx, moved))
        below = None if self.fallback is None else (lambda _low, _high: self._below(start_zyx, stop_zyx))
        return self.volume.read(low, high, below)

    def _below(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        """What the fallback says, 0 outside of it."""
        labels = np.zeros([b - a for a, b in zip(start_zyx, stop_zyx, strict=True)], np.uint64)
        if self.fallback is not None:
            low = triple(np.maximum(start_zyx, self.fallback.start_zyx))
            high = triple(np.minimum(stop_zyx, self.fallback.stop_zyx))
            if all(a < b for a, b in zip(low, high, strict=True)):
                inner = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start_zyx, strict=True))
                labels[inner] = self.fallback.read(low, high)
        return labels

"""What a job evaluates: the opened volumes, transforms and truth, once per process."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.blocks import BlockGrid
from happyneurons.jobs.stage import Context
from happyneurons.stages.evaluate.labels import (
    HeldObjects,
    Objects,
    Region,
    TissueLabels,
    TruthLabels,
    canonical_box,
    clamped,
)
from happyneurons.stages.evaluate.stage import REPORT
from happyneurons.stages.evaluate.tissue import Placement, Tissue
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.skeletons import SkeletonLayer
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import Volume, open_volume

if TYPE_CHECKING:
    from happyneurons.acquisition.metadata import AcquisitionDocument
    from happyneurons.acquisition.truth import AcquisitionTruth
    from happyneurons.imaging.transforms import MontageTransforms
    from happyneurons.stages.evaluate.parts import PartGrid
    from happyneurons.stages.evaluate.stage import EvaluateParams


class Subject:
    def __init__(self, context: Context[Any]) -> None:
        self.params: EvaluateParams = context.params
        self.log = context.log
        self._report = context.output_store(REPORT)
        self._segmentation = context.optional_input("segmentation")
        self._truth = context.optional_input("truth")
        self._skeletons = context.optional_input("skeletons")
        self._aligned = context.optional_input("aligned")
        self._montage = context.optional_input("montage")

    @staticmethod
    def of(context: Context[Any]) -> Subject:
        subject: Subject = context.once("subject", lambda: Subject(context))
        return subject

    # --- what there is to do -----------------------------------------------------------------

    @property
    def scores_montage(self) -> bool:
        return self.params.acquisition is not None and bool(self.stacks)

    @property
    def scores_alignment(self) -> bool:
        return self.scores_montage and self._aligned is not None

    @property
    def scores_labels(self) -> bool:
        return self._segmentation is not None and (self._truth is not None or self.labels_uri is not None)

    @property
    def scores_skeletons(self) -> bool:
        return self._segmentation is not None and self._skeletons is not None

    @property
    def scores_segments(self) -> bool:
        return self.scores_labels or self.scores_skeletons

    @property
    def through_tissue(self) -> bool:
        """Whether the truth lies in the acquired volume's coordinates rather than in the segmentation's."""
        return self.params.acquisition is not None and self._aligned is not None

    # --- acquisition -------------------------------------------------------------------------

    @cached_property
    def acquisition(self) -> AcquisitionTruth:
        from happyneurons.acquisition.truth import AcquisitionTruth

        assert self.params.acquisition is not None
        return AcquisitionTruth(self.params.acquisition)

    @cached_property
    def document(self) -> AcquisitionDocument:
        from happyneurons.acquisition.metadata import ACQUISITION_FILE, AcquisitionDocument, read_document

        return read_document(self.acquisition.folder / ACQUISITION_FILE, AcquisitionDocument)

    @property
    def tile_size_xy(self) -> tuple[int, int]:
        return (self.document.tile_width_px, self.document.tile_height_px)

    @cached_property
    def labels_uri(self) -> str | None:
        return None if self.params.acquisition is None else self.acquisition.labels_uri

    @cached_property
    def stacks(self) -> list[Artifact]:
        """The montage, what was made from it, … and the aligned stack; the montage alone if that is all.

        Each stack says what it was made from. Raises UserError if that does not lead to the montage.
        """
        if self._aligned is None:
            return [] if self._montage is None else [self._montage]
        found = [self._aligned]
        while self._montage is None or found[0].digest != self._montage.digest:
            source = found[0].properties.get("source")
            artifact = None if source is None else load_artifact(source)
            if artifact is not None and artifact.kind == "section_stack":
                found.insert(0, artifact)
            elif self._montage is None:
                break  # a montage is made from tiles
            else:
                raise UserError("evaluate: the input aligned was not made from the input montage")
        return found

    @cached_property
    def montage(self) -> MontageTransforms:
        from happyneurons.imaging.transforms import MontageTransforms

        return MontageTransforms(self.stacks[0])

    @cached_property
    def tissue(self) -> Tissue:
        from happyneurons.imaging.transforms import AlignTransforms

        placement = Placement([AlignTransforms(stack) for stack in self.stacks[1:]])
        return Tissue(self.acquisition, self.montage, placement, self.tile_size_xy)

    # --- labels ------------------------------------------------------------------------------

    @cached_property
    def segmentation(self) -> Volume:
        assert self._segmentation is not None
        return open_volume(self._segmentation.data_uri)

    @cached_property
    def truth_volume(self) -> Volume:
        if self._truth is not None:
            return open_volume(self._truth.data_uri)
        assert self.labels_uri is not None
        return open_volume(load_artifact(self.labels_uri).data_uri)

    def check_labels(self) -> None:
        """Raise UserError if there is nothing to score, or in another resolution."""
        assert self._segmentation is not None
        if self.through_tissue and self._aligned is not None:
            a, b = self._aligned.voxel_size_nm_xyz, self._segmentation.voxel_size_nm_xyz
            if a is not None and b is not None and not np.allclose(a, b, rtol=1e-3):
                raise UserError(
                    f"evaluate: the segmentation has voxels of {b} nm, the aligned sections of {a} nm (xyz); "
                    "both must have the same"
                )
        if any(a >= b for a, b in zip(*self.box, strict=True)):
            if not self.scores_labels:
                raise UserError("evaluate: bounds_xyz, inner_margin_xyz and the segmentation have no voxel in common")
            raise UserError(
                "evaluate: bounds_xyz, inner_margin_xyz, the segmentation and the truth have no voxel in common "
                f"(segmentation {self.segmentation.start_zyx}..{self.segmentation.stop_zyx}, truth "
                f"{self.truth_volume.start_zyx}..{self.truth_volume.stop_zyx}, zyx)"
            )

    @cached_property
    def box(self) -> tuple[Triple, Triple]:
        """(start_zyx, stop_zyx) of what is scored."""
        low, high = np.array(self.segmentation.start_zyx), np.array(self.segmentation.stop_zyx)
        if self.params.bounds_xyz is not None:
            low = np.maximum(low, self.params.bounds_xyz[0][::-1])
            high = np.minimum(high, self.params.bounds_xyz[1][::-1])
        low, high = low + self.params.inner_margin_xyz[::-1], high - np.array(self.params.inner_margin_xyz[::-1])
        if self.scores_labels and not self.through_tissue:
            low, high = np.maximum(low, self.truth_volume.start_zyx), np.minimum(high, self.truth_volume.stop_zyx)
        return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))

    @cached_property
    def in_one_piece(self) -> bool:
        return int(np.prod(np.subtract(*self.box[::-1]))) <= self.params.one_piece_max_voxels

    @cached_property
    def grid(self) -> BlockGrid:
        """The blocks that are scored one by one."""
        low, high = self.box
        edge = max(1, *np.subtract(high, low).tolist()) if self.in_one_piece else self.params.block_voxels
        return BlockGrid(low, high, (edge, edge, edge))

    def block_numbers(self, zyx: np.ndarray) -> np.ndarray:
        """Place in the grid's order of the blocks in which voxels (n, 3) of the box lie."""
        low, size = np.asarray(self.grid.low_zyx), np.asarray(self.grid.size_zyx)
        _, ny, nx = -(-np.subtract(self.grid.high_zyx, low) // size)
        z, y, x = ((zyx - low) // size).T
        return np.asarray((z * ny + y) * nx + x)

    # --- truth -------------------------------------------------------------------------------

    @property
    def relabels(self) -> bool:
        return self.params.relabel_truth

    @cached_property
    def truth_box(self) -> tuple[Triple, Triple]:
        """(start_zyx, stop_zyx) of the truth's voxels that are looked at."""
        if not self.through_tissue:
            return clamped(self.truth_volume, *self.box)
        # Outside the picture nothing may connect two objects, nor need it be read.
        box = canonical_box(self.tissue, *self.box) if self.relabels else None
        if box is None:
            return self.truth_volume.start_zyx, self.truth_volume.stop_zyx
        return clamped(self.truth_volume, *box)

    @cached_property
    def part_grid(self) -> PartGrid | None:
        """Blocks in which the truth's connected objects are found; None if that needs no blocks."""
        from happyneurons.stages.evaluate.parts import PartGrid

        if not (self.scores_labels and self.relabels) or self.in_one_piece:
            return None
        edge = self.params.block_voxels
        return PartGrid(self.truth_volume, BlockGrid(*self.truth_box, (edge, edge, edge)))

    @cached_property
    def truth(self) -> TruthLabels:
        objects: Objects | None = None
        start, stop = self.truth_box
        if self.part_grid is not None:
            from happyneurons.stages.evaluate.parts import StreamedObjects

            objects = StreamedObjects(self.part_grid, self._report)
        elif self.relabels and all(a < b for a, b in zip(start, stop, strict=True)):
            objects = HeldObjects(self.truth_volume, start, stop)
        region = Region(self.truth_volume, start, stop, objects)
        return TissueLabels(self.tissue, region) if self.through_tissue else region

    # --- skeletons ---------------------------------------------------------------------------

    @cached_property
    def skeletons(self) -> SkeletonLayer:
        assert self._skeletons is not None
        return SkeletonLayer(Store(self._skeletons.data_uri), swc_unit_nm=self.params.swc_unit_nm)

    @property
    def skeleton_voxel_nm_xyz(self) -> tuple[float, float, float]:
        """Voxels that the skeletons' nm are counted in."""
        assert self._skeletons is not None
        # Skeletons of our own know those of the volume they were made of, which may not be in nm at all.
        own = self._skeletons.voxel_size_nm_xyz
        return (
            own
            if own is not None and not self._skeletons.properties.get("mip")
            else self.segmentation.voxel_size_nm_xyz
        )

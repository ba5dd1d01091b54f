"""What the tasks of a job share: the image at the right level, the model, rules, grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.layers import UNKNOWN_SIZE, Size, nm
from happyneurons.jobs.stage import Context
from happyneurons.stages.mask.objects import Window, class_margin, object_margin
from happyneurons.stages.mask.params import LEVELS, NAMES, ClassRule, MaskParams
from happyneurons.stages.mask.predictors import GreyValues, Network, Predictor
from happyneurons.store.artifacts import Bounds
from happyneurons.store.volumes import PrecomputedVolume, Volume, open_volume
from happyneurons.unions.output import CHUNK, BlockGrid

if TYPE_CHECKING:
    from happyneurons.annotations.points import Points
    from happyneurons.unet.model import Model

MASK, PROBABILITY, INSTANCES, OBJECTS = "mask", "probability", "instances", "objects"
MAX_WINDOW = 2**30
"""Voxels that a task of objects may hold: about 20 GB."""
SIZE_TOLERANCE = 0.1
T = TypeVar("T")


class Subject:
    """One for each process and job."""

    def __init__(self, context: Context[MaskParams]) -> None:
        self.context, self.params = context, context.params

    @classmethod
    def of(cls, context: Context[Any]) -> Subject:
        subject: Subject = context.once("subject", lambda: cls(context))
        return subject

    def _once(self, name: str, make: Callable[[], T]) -> T:
        made: T = self.context.once(f"subject {name}", make)
        return made

    # --- what probabilities are made of, or come from ----------------------------------------

    @property
    def given(self) -> bool:
        """Whether probabilities are given instead of an image."""
        return self.context.optional_input("probability") is not None

    @property
    def model(self) -> Model | None:
        def make() -> Model | None:
            from happyneurons.unet.model import load_model

            artifact = self.context.optional_input("model")
            return None if artifact is None else load_model(artifact.data_uri)

        return self._once("model", make)

    @property
    def source(self) -> Volume:
        """The image, or the given probabilities, at the level that is worked on."""
        return self._once("source", self._source)

    def _source(self) -> Volume:
        if self.given:
            return open_volume(self.context.input("probability").data_uri, self.params.mip or 0)
        uri, params, model = self.context.input("image").data_uri, self.params, self.model
        wanted = None if model is None or params.any_voxel_size else model.voxel_size_nm_xyz
        if params.mip is not None or wanted is None:
            volume: Volume = open_volume(uri, params.mip or 0)
            if wanted is not None and volume.voxel_size_nm_xyz != UNKNOWN_SIZE and not _alike(volume, wanted):
                raise UserError(
                    f"mask: the image has voxels of {nm(volume.voxel_size_nm_xyz)} at mip {params.mip}, the model was "
                    f"trained on {nm(wanted)}; leave params.mip out, choose another model, or set any_voxel_size"
                )
            return volume
        first = open_volume(uri)
        if first.voxel_size_nm_xyz == UNKNOWN_SIZE:
            return first
        levels = [first]
        if isinstance(first, PrecomputedVolume):
            levels += [PrecomputedVolume(uri, mip) for mip in range(1, first.mips)]
        for volume in levels:
            if _alike(volume, wanted):
                return volume
        sizes = "; ".join(f"mip {mip}: {nm(volume.voxel_size_nm_xyz)}" for mip, volume in enumerate(levels))
        raise UserError(
            f"mask: the model was trained on {nm(wanted)}, and no level of the image has such voxels ({sizes}); make "
            "a pyramid (stage volume), choose another model, or set any_voxel_size with the mip that is meant"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        if self.given:
            artifact = self.context.input("probability")
            names = artifact.properties.get("classes")
            channels = getattr(self.source, "channels", 1)
            return tuple(names) if names else tuple(list(self.params.classes)[:channels]) or ("object",)
        model = self.model
        return (NAMES[self.params.method],) if model is None else model.architecture.classes

    @property
    def rules(self) -> tuple[ClassRule, ...]:
        return tuple(self.params.rule(name) for name in self.class_names)

    @property
    def predictor(self) -> Predictor:
        def make() -> Predictor:
            params, model = self.params, self.model
            if model is not None:
                block = self.grid.edge_zyx
                edge = [min(b, n) for b, n in zip(block[1:], self.bounds.shape_zyx[1:], strict=True)]
                return Network(model, params, (edge[0], edge[1]), self.context.threads)
            size = self.size_zyx
            window = (round(params.window_nm / size[1]), round(params.window_nm / size[2]))
            return GreyValues(params.method, params.level or LEVELS[params.method], window)

        return self._once("predictor", make)

    # --- space -------------------------------------------------------------------------------

    @property
    def voxel_size_nm_xyz(self) -> Size:
        return self.source.voxel_size_nm_xyz

    @property
    def size_zyx(self) -> Size:
        x, y, z = self.voxel_size_nm_xyz
        return (z, y, x)

    @property
    def bounds(self) -> Bounds:
        def make() -> Bounds:
            low, high = self.source.start_zyx[::-1], self.source.stop_zyx[::-1]
            if self.params.bounds_xyz is None:
                return Bounds(minimum_xyz=low, maximum_xyz=high)
            a, b = self.params.bounds_xyz
            inside = all(p <= q < r <= s for p, q, r, s in zip(low, a, b, high, strict=True))
            if not inside:
                raise UserError(
                    f"mask: params.bounds_xyz {a}..{b} do not lie within the volume, {low}..{high} at this mip",
                    [("params.bounds_xyz", f"within {low}..{high}")],
                )
            return Bounds(minimum_xyz=a, maximum_xyz=b)

        return self._once("bounds", make)

    @property
    def grid(self) -> BlockGrid:
        """Blocks of the round of probabilities."""
        return self._grid("block_size_xyz")

    @property
    def cells(self) -> BlockGrid:
        """Blocks of masks and objects."""
        return self._grid("object_block_size_xyz")

    def _grid(self, name: str) -> BlockGrid:
        x, y, z = getattr(self.params, name)
        if any(n < CHUNK or n % CHUNK for n in (x, y, z)):
            raise UserError(
                f"mask: params.{name} is {(x, y, z)}; multiples of {CHUNK} were expected",
                [(f"params.{name}", f"multiples of {CHUNK}")],
            )
        return BlockGrid(self.bounds, (z, y, x))

    def window(self, start_zyx: tuple[int, int, int], stop_zyx: tuple[int, int, int]) -> Window:
        low, high = self.bounds.minimum_xyz[::-1], self.bounds.maximum_xyz[::-1]
        return Window(start_zyx, stop_zyx, low, high)

    # --- objects -----------------------------------------------------------------------------

    @property
    def has_objects(self) -> bool:
        return any(r.instances != "none" for r in self.rules)

    @property
    def grown(self) -> dict[int, ClassRule]:
        """Classes whose objects grow from seeds, by number (from 1)."""
        return {n: r for n, r in enumerate(self.rules, 1) if r.instances == "watershed"}

    @property
    def points(self) -> Points | None:
        """The seeds that were given."""

        def make() -> Points | None:
            from happyneurons.annotations.points import read_points

            return None if self.params.seeds is None else read_points(self.params.seeds, self.voxel_size_nm_xyz)

        return self._once("points", make)

    def check(self) -> None:
        """Raise UserError if parameters and inputs do not fit."""
        context, params = self.context, self.params
        image, model = context.optional_input("image"), context.optional_input("model")
        if self.given and (image is not None or model is not None):
            raise UserError("mask: give probability (which then stays as it is), or image and model, not both")
        if not self.given and image is None:
            raise UserError("mask: give the input image (and the model), or the input probability")
        if not self.given and (params.method == "network") != (model is not None):
            raise UserError(
                "mask: params.method is network, and there is no input model; train one (mask-train), or choose "
                "tissue, dark or bright" if model is None else
                f"mask: params.method is {params.method}, which needs no model; leave it out, or choose network"
            )  # fmt: skip
        if self.source.dtype.kind not in "uif":
            raise UserError(f"mask: {self.source.uri} has type {self.source.dtype}, grey values were expected")
        if self.given and self.source.dtype != np.uint8:
            raise UserError(f"mask: the input probability has type {self.source.dtype}, uint8 was expected")
        unknown = sorted(set(params.classes) - set(self.class_names))
        if unknown:
            raise UserError(
                f"mask: params.classes names {unknown[0]}; there are {', '.join(self.class_names)}",
                [(f"params.classes.{unknown[0]}", f"one of {', '.join(self.class_names)}")],
            )
        if params.seeds is not None and not self.grown:
            raise UserError("mask: params.seeds are given, but no class grows objects from them; set instances: "
                            "watershed in its rule in params.classes")  # fmt: skip
        if params.seeds is not None and len(self.grown) > 1:
            raise UserError("mask: params.seeds are for one class, and several have instances: watershed")
        _ = self.grid, self.cells
        self._check_windows()
        self._check_points()

    def _check_windows(self) -> None:
        for number, rule in self.grown.items():
            margin = np.add(object_margin(rule, self.size_zyx), class_margin(self.rules, self.size_zyx))
            shape = np.minimum(np.add(self.cells.edge_zyx, 2 * margin), self.bounds.shape_zyx)
            if np.prod(shape) > MAX_WINDOW:
                name = self.class_names[number - 1]
                raise UserError(
                    f"mask: objects of {name} up to {rule.max_diameter_nm:g} nm are {tuple(margin[::-1].tolist())} "
                    f"voxels (xyz) long at this level, too much for one task; take a coarser level, or give a "
                    f"smaller params.classes.{name}.max_diameter_nm",
                    [(f"params.classes.{name}.max_diameter_nm", "less, or a coarser level")],
                )

    def _check_points(self) -> None:
        points = self.points
        if points is None:
            return
        low, high = self.bounds.minimum_xyz, self.bounds.maximum_xyz
        inside = ((points.zyx[:, ::-1] >= low) & (points.zyx[:, ::-1] < high)).all(axis=1)
        if not inside.any():
            raise UserError(
                f"mask: none of the {len(points.zyx)} points of {self.params.seeds} lies in {low}..{high} (xyz, voxels "
                "of that mip); are their coordinates of another mip, or in nm?"
            )
        if not inside.all():
            self.context.log.warning("%d of %d points lie outside", int((~inside).sum()), len(points.zyx))


def _alike(volume: Volume, wanted: Size) -> bool:
    """Whether voxels have the size of the model's in the section; it sees no other direction."""
    return bool(np.allclose(volume.voxel_size_nm_xyz[:2], wanted[:2], rtol=SIZE_TOLERANCE))

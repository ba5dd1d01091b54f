"""What a subvolume is segmented from besides the image: masks, an initial segmentation, seeds.

All of it is checked before any work starts (:func:`check_inputs`), and read box by box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from happyneurons.errors import NotFoundError, UserError
from happyneurons.imaging.layers import UNKNOWN_SIZE, Layer, Size, nm
from happyneurons.imaging.subvolumes import Subvolume
from happyneurons.jobs.stage import Context, InputSpec
from happyneurons.stages.segment.masks import MaskRule, outside
from happyneurons.store.volumes import Volume

if TYPE_CHECKING:
    from happyneurons.ffn.model import Model
    from happyneurons.ffn.obstacles import Obstacles
    from happyneurons.store.artifacts import Artifact

Points = tuple[tuple[int, int, int], ...]

INPUTS = {
    "mask": InputSpec(
        ("mask", "image_volume", "segmentation"),
        "what is not to be segmented (cell bodies, vessels, artifacts, no tissue); any resolution; see mask_rules",
        optional=True,
        many=True,
    ),
    "initial_segmentation": InputSpec(
        "segmentation", "objects that are there already and stay as they are; any resolution", optional=True
    ),
    "seeds": InputSpec(
        "table", "points with columns x, y, z (voxels of that mip) or x_nm, y_nm, z_nm; instead of seeds_xyz",
        optional=True,
    ),
}  # fmt: skip


class InputParams(BaseModel):
    """Parameters of the inputs; part of the segment stage's."""

    mask_rules: tuple[MaskRule, ...] = Field(
        (), description="What each mask means, in the order of the input `mask`; empty: all voxels but 0 are excluded"
    )
    seeds_xyz: Points = Field(
        (), description="Points to start from, in this order, instead of the image's peaks; voxels of that mip"
    )
    voxel_size_nm_xyz: Size | None = Field(
        None, description="Voxel size of the image at that mip, nm, where its file does not tell it or is wrong"
    )
    model_voxel_size_nm_xyz: Size | None = Field(
        None, description="Voxel size that the network was trained on, nm; default: what the model records, if it does"
    )
    voxel_size_tolerance: float = Field(
        0.1, ge=0, lt=1, description="Fraction by which the image's voxel size may differ from the model's, each axis"
    )
    any_voxel_size: bool = Field(False, description="Segment although the voxel size is not the model's: it is meant")


def image_voxel_size(image: Volume, params: InputParams) -> Size:
    return params.voxel_size_nm_xyz or image.voxel_size_nm_xyz


def known_size(size: Size) -> bool:
    """Whether a voxel size was told, not assumed. No electron microscope makes voxels of 1 nm in all directions."""
    return size != UNKNOWN_SIZE


def check_inputs(
    context: Context[Any], model: Model, image: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int]
) -> float:
    """Raise UserError if model, masks, initial segmentation or seeds do not fit the part [start, stop) of the image.

    Returns the least share of it that a mask or the initial segmentation covers, 1 without any. A
    partial cover is allowed (and logged): outside of its extent a volume counts as 0 everywhere.
    """
    params: InputParams = context.params
    size = image_voxel_size(image, params)
    _check_grey_values(image, model, context)
    _check_voxel_size(size, model, params)
    masks = context.inputs.get("mask", ())
    if params.mask_rules and len(params.mask_rules) != len(masks):
        raise UserError(
            f"segment: there are {len(masks)} masks and {len(params.mask_rules)} params.mask_rules; "
            "give one rule for each mask, in their order, or none at all"
        )
    layers = [
        (f"mask {artifact.uri}", layer) for artifact, (layer, _) in zip(masks, _masks(context, size), strict=True)
    ]
    initial = context.optional_input("initial_segmentation")
    if initial is not None:
        layer = _initial(context, initial, size)
        if layer.volume.dtype.kind not in "ui":
            raise UserError(f"segment: initial_segmentation {initial.uri} has type {layer.volume.dtype}, not ids")
        layers.append((f"initial_segmentation {initial.uri}", layer))
    least = 1.0
    for name, layer in layers:
        cover = layer.cover(start_zyx, stop_zyx)
        least = min(least, cover)
        if cover == 0:
            raise UserError(
                f"segment: {name} does not overlap what is segmented: it covers {_extent_nm(layer)}, the image's part "
                f"{_box_nm(start_zyx, stop_zyx, size)}; check voxel sizes and offsets"
            )
        if cover < 1:
            context.log.warning(
                "%s covers %.1f %% of what is segmented; elsewhere it counts as 0 everywhere", name, 100 * cover
            )
    points = _points(context, size)
    if points is not None and not _inside(points, start_zyx, stop_zyx).any():
        raise UserError(
            f"segment: none of the {len(points)} seeds lies in what is segmented, {tuple(start_zyx[::-1])}.."
            f"{tuple(stop_zyx[::-1])} (xyz, voxels of that mip)"
        )
    return least


def _check_grey_values(image: Volume, model: Model, context: Context[Any]) -> None:
    if image.dtype.kind not in "uif":
        raise UserError(f"segment: the image has type {image.dtype}, grey values were expected")
    checkpoint = context.input("model").data_uri.startswith("ckpt://")
    if checkpoint and image.dtype != np.uint8 and context.params.image_mean is None:
        raise UserError(
            f"segment: the image has type {image.dtype}, and the checkpoint does not tell what its grey values were "
            f"normalized by (assumed: mean {model.architecture.image_mean:g}, of 8 bits); give image_mean, image_stddev"
        )


def _check_voxel_size(size: Size, model: Model, params: InputParams) -> None:
    recorded = params.model_voxel_size_nm_xyz or model.training.get("voxel_size_nm_xyz")
    if recorded is None or params.any_voxel_size:
        return
    x, y, z = (float(v) for v in recorded)
    # Neither an image nor a training volume that does not tell its size can be judged.
    if not known_size(size) or not known_size((x, y, z)):
        return
    if any(
        abs(math.log(own / theirs)) > math.log1p(params.voxel_size_tolerance)
        for own, theirs in zip(size, (x, y, z), strict=True)
    ):
        raise UserError(
            f"segment: the image has voxels of {nm(size)}, the model was trained on {nm((x, y, z))}; choose another "
            "mip or model, or set any_voxel_size if it is meant"
        )


def read_excluded(
    context: Context[Any], box: Subvolume, image: np.ndarray, size: Size
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """Voxels of a box (z, y, x) that are not segmented, and voxels where no seeds are wanted. None: there are none.

    Not segmented is what lies outside of the sections (grey value `outside_grey`) or in a mask.
    """
    grey = context.params.outside_grey
    excluded = None if grey is None else outside(image, grey)
    unseeded: NDArray[np.bool_] | None = None
    for layer, rule in _masks(context, size):
        found = layer.read(box.start_zyx, box.stop_zyx, rule)
        if rule.seeds_only:
            unseeded = found if unseeded is None else unseeded | found
        else:
            excluded = found if excluded is None else excluded | found
    return (
        excluded if excluded is not None and excluded.any() else None,
        unseeded if unseeded is not None and unseeded.any() else None,
    )


def read_obstacles(context: Context[Any], box: Subvolume, size: Size) -> Obstacles | None:
    """What the initial segmentation has in a box."""
    from happyneurons.ffn.obstacles import Obstacles

    artifact = context.optional_input("initial_segmentation")
    if artifact is None:
        return None
    layer = _initial(context, artifact, size)
    return Obstacles.of(layer.read(box.start_zyx, box.stop_zyx, lambda ids: ids))


def read_seeds(context: Context[Any], box: Subvolume, size: Size) -> NDArray[np.int64] | None:
    """(n, 3) zyx points within a box, from its first voxel; None: the image's peaks are to be taken."""
    points = _points(context, size)
    if points is None:
        return None
    return points[_inside(points, box.start_zyx, box.stop_zyx)] - np.array(box.start_zyx)


def _masks(context: Context[Any], size: Size) -> list[tuple[Layer, MaskRule]]:
    def make() -> list[tuple[Layer, MaskRule]]:
        masks = context.inputs.get("mask", ())
        rules = context.params.mask_rules or [MaskRule()] * len(masks)
        return [
            (Layer.open(artifact.data_uri, size, rule.voxel_size_nm_xyz), rule)
            for artifact, rule in zip(masks, rules, strict=True)
        ]

    opened: list[tuple[Layer, MaskRule]] = context.once("masks", make)
    return opened


def _initial(context: Context[Any], artifact: Artifact, size: Size) -> Layer:
    layer: Layer = context.once("initial segmentation", lambda: Layer.open(artifact.data_uri, size))
    return layer


def _points(context: Context[Any], size: Size) -> NDArray[np.int64] | None:
    """All given seeds, (n, 3) zyx voxels, in their order; None: there are none."""

    def make() -> NDArray[np.int64] | None:
        given: Points = context.params.seeds_xyz
        table = context.optional_input("seeds")
        if given and table is not None:
            raise UserError(
                "segment: seeds are given both as params.seeds_xyz and as the input seeds; give one of them"
            )
        if table is not None:
            return _table_points(table, size)
        return np.array(given, np.int64).reshape(-1, 3)[:, ::-1] if given else None

    points: NDArray[np.int64] | None = context.once("seeds", make)
    return points


def _table_points(table: Artifact, size: Size) -> NDArray[np.int64]:
    try:
        document = table.store().get_json("table.json")
    except NotFoundError as error:
        raise UserError(f"segment: seeds {table.uri}: {error}") from None
    columns = document["columns"]
    for names, unit in ((("x", "y", "z"), (1.0, 1.0, 1.0)), (("x_nm", "y_nm", "z_nm"), size)):
        if all(name in columns for name in names):
            places = [columns.index(name) for name in names]
            points = np.array([[row[p] for p in places] for row in document["rows"]], float).reshape(-1, 3)
            return np.floor(points / unit).astype(np.int64)[:, ::-1]
    raise UserError(
        f"segment: seeds {table.uri} has the columns {', '.join(map(str, columns))}; x, y, z or x_nm, y_nm, z_nm "
        "were expected"
    )


def _inside(points: NDArray[np.int64], start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> NDArray[np.bool_]:
    return np.asarray(((points >= np.array(start_zyx)) & (points < np.array(stop_zyx))).all(axis=1))


def _extent_nm(layer: Layer) -> str:
    return _box_nm(layer.volume.start_zyx, layer.volume.stop_zyx, layer.voxel_size_nm_xyz)


def _box_nm(start_zyx: Sequence[int], stop_zyx: Sequence[int], size: Size) -> str:
    low, high = (
        tuple(round(p * s) for p, s in zip(position[::-1], size, strict=True)) for position in (start_zyx, stop_zyx)
    )
    return f"{low}..{high} nm"

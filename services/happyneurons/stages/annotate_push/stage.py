"""annotate-push: a crop, image and segmentation, as a WEBKNOSSOS dataset for people to annotate.

Coordinates are kept (or moved by `shift_xyz`), so that what is drawn comes back to its place: see
annotate-pull. No server is called from here: compute nodes reach the store alone (`hpn annotate upload`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from happyneurons.errors import UserError
from happyneurons.formats.location import Location, absolute
from happyneurons.jobs.stage import (
    Context,
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageParams,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    from happyneurons.formats.base import Reader, VolumeInfo, Writer

DATASET = "dataset"
LAYERS = {"image": "color", "segmentation": "segmentation"}
"""Input → name of its layer."""
LARGEST_SHOWN = 2**53 - 1
Point = tuple[int, int, int]


class AnnotatePushParams(StageParams):
    name: str = Field(
        "crop",
        pattern=r"^[A-Za-z0-9_.-]{1,120}$",
        description="Name of the dataset; annotations of it carry it",
        json_schema_extra={"format": "name"},
    )
    target: str | None = Field(
        None,
        description="Folder or URI to write the dataset to; default: the job's own folder in the store",
        json_schema_extra={"format": "uri-reference", "written": True},
    )
    format: Literal["webknossos-wkw", "webknossos-zarr3"] = Field(
        "webknossos-zarr3", description="How voxels are stored; Zarr 3 is what today's servers prefer"
    )
    bounds_xyz: tuple[Point, Point] | None = Field(
        None, description="The crop: minimum and maximum (exclusive), voxels of that mip; default: the whole image"
    )
    mip: int = Field(0, ge=0, le=20, description="Level of the volumes' pyramids that becomes full resolution")
    shift_xyz: Point = Field(
        (0, 0, 0),
        description="Voxels added to all coordinates, for volumes that begin below 0; annotate-pull takes them back",
    )
    num_mips: int = Field(3, ge=0, le=16, description="Magnifications to make above full resolution")
    shard_px: int = Field(256, ge=32, le=4096, description="Edge of what one file holds, voxels; a power of two")
    task_mb: int = Field(64, ge=1, le=65536, description="MB of voxels that a task holds; at least a file")

    @field_validator("target")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        try:
            return None if uri is None else absolute(uri)
        except UserError as error:
            raise ValueError(str(error)) from None


class _Layer:
    """An input, where it is read and what it becomes."""

    def __init__(self, context: Context[AnnotatePushParams], name: str) -> None:
        from happyneurons.formats.base import ReadOptions, VolumeInfo, WriteOptions, pyramid
        from happyneurons.formats.registry import make_writer, open_reader

        params, artifact = context.params, context.input(name)
        uri = f"{artifact.data_uri}/image" if artifact.kind == "section_stack" else artifact.data_uri
        self.reader: Reader = open_reader(uri, ReadOptions(params.mip, threads=context.threads))
        start, stop = _cropped(self.reader, params, name)
        self.shift = params.shift_xyz[::-1]
        info = VolumeInfo(
            _moved(start, self.shift), _moved(stop, self.shift), self.reader.voxel_size_nm_xyz, self.reader.dtype,
            name == "segmentation",
        )  # fmt: skip
        self.levels: list[VolumeInfo] = pyramid(info, params.num_mips, 64)
        options = WriteOptions(64, params.shard_px, True, context.threads)
        target = f"{_target(context)}?{LAYERS[name]}"
        self.writer: Writer = make_writer(target, params.format, self.levels, options)

    @staticmethod
    def of(context: Context[AnnotatePushParams], name: str) -> _Layer:
        layer: _Layer = context.once(f"layer {name}", lambda: _Layer(context, name))
        return layer


def _moved(point: Sequence[int], by: Sequence[int]) -> Point:
    z, y, x = (int(a) + b for a, b in zip(point, by, strict=True))
    return (z, y, x)


def _cropped(reader: Reader, params: AnnotatePushParams, name: str) -> tuple[Point, Point]:
    low, high = reader.start_zyx, reader.stop_zyx
    if params.bounds_xyz is not None:
        given_low, given_high = params.bounds_xyz[0][::-1], params.bounds_xyz[1][::-1]
        z, y, x = (max(a, b) for a, b in zip(low, given_low, strict=True))
        low = (z, y, x)
        z, y, x = (min(a, b) for a, b in zip(high, given_high, strict=True))
        high = (z, y, x)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise UserError(
            f"annotate-push: params.bounds_xyz lies outside of the {name}, {reader.start_zyx[::-1]} to "
            f"{reader.stop_zyx[::-1]} (xyz)"
        )
    return low, high


def _target(context: Context[AnnotatePushParams]) -> str:
    return context.params.target or context.output_uri(DATASET)


def _given(context: Context[AnnotatePushParams]) -> list[str]:
    return [name for name in LAYERS if context.inputs.get(name)]


class WriteLayer(Round):
    """Task: a box of one level of a layer."""

    def __init__(self, layer: str, level: int) -> None:
        self.layer, self.level = layer, level
        self.name = f"{LAYERS[layer]}_{level}"  # type: ignore[misc]

    def prepare(self, context: Context[AnnotatePushParams]) -> None:
        if not self.level:
            # From now on what lies there is this job's: a later attempt goes on with it.
            context.output_store(DATASET).put_json("claim.json", {"target": _target(context)})
            _Layer.of(context, self.layer).writer.prepare()

    def plan(self, context: Context[AnnotatePushParams]) -> Iterable[Task]:
        from happyneurons.formats.blocks import boxes, task_shape

        layer = _Layer.of(context, self.layer)
        if self.level >= len(layer.levels):
            return
        info, writer = layer.levels[self.level], layer.writer
        limit, sections = context.params.task_mb * 1_000_000, layer.reader.sections and not self.level
        shape = task_shape(writer.unit_zyx(self.level), info.shape_zyx, info.dtype.itemsize, limit, sections)
        for start, stop in boxes(info.start_zyx, info.stop_zyx, writer.grid_zyx(self.level), shape):
            name = "_".join(f"{a}-{b}" for a, b in zip(start, stop, strict=True))
            yield Task(name, {"box": [list(start), list(stop)]})

    def run(self, task: Task, context: Context[AnnotatePushParams]) -> TaskResult:
        from happyneurons.formats.levels import level_block

        layer, (start, stop) = _Layer.of(context, self.layer), task.payload["box"]
        if self.level:
            block = level_block(layer.writer, self.level, start, stop)
        else:
            back = [-s for s in layer.shift]
            block = layer.reader.read(_moved(start, back), _moved(stop, back))
        layer.writer.write(self.level, start, block)
        largest = int(block.max()) if self.layer == "segmentation" and not self.level else 0
        return TaskResult({"largest": largest}, voxels=block.size, bytes=block.nbytes)


class Close(Round):
    """Task: the dataset's description."""

    name = "close"

    def plan(self, context: Context[AnnotatePushParams]) -> Iterable[Task]:
        yield Task("properties")

    def run(self, task: Task, context: Context[AnnotatePushParams]) -> TaskResult:
        from happyneurons.formats.webknossos import PROPERTIES
        from happyneurons.store.documents import Store

        largest = 0
        for name in _given(context):
            largest = max((int(d["largest"]) for _, d in context.results(f"{LAYERS[name]}_0")), default=0)
            _Layer.of(context, name).writer.close(largest)
        if largest > LARGEST_SHOWN:
            context.log.warning("ids up to %d: WEBKNOSSOS shows those up to 2^53 - 1 exactly only", largest)
        store = Store(Location.parse(_target(context)).root)
        properties = store.get_json(PROPERTIES)
        properties["id"] = {**properties["id"], "name": context.params.name}
        store.put_json(PROPERTIES, properties)
        return TaskResult({"largest": largest})


class AnnotatePush(Stage[AnnotatePushParams]):
    name, version = "annotate-push", "1"
    summary = "A crop, image and segmentation, as a WEBKNOSSOS dataset to annotate"
    Params = AnnotatePushParams
    inputs = {
        "image": InputSpec(("image_volume", "section_stack"), "the image"),
        "segmentation": InputSpec("segmentation", "its segmentation, for people to correct", optional=True),
    }
    outputs = {DATASET: OutputSpec("volume_files", "the dataset: layers color and segmentation")}

    def check(self, context: Context[AnnotatePushParams]) -> None:
        layers = {name: _Layer.of(context, name) for name in _given(context)}
        sizes = {name: layer.reader.voxel_size_nm_xyz for name, layer in layers.items()}
        for name, size in sizes.items():
            if any(abs(a - b) > 1e-6 * b for a, b in zip(size, sizes["image"], strict=True)):
                raise UserError(
                    f"annotate-push: the {name} has voxels of {size} nm, the image of {sizes['image']} nm; all layers "
                    "of a dataset share one size: choose other volumes, or another params.mip"
                )
        claimed = context.output_store(DATASET).exists("claim.json")
        if not claimed and any(layer.writer.occupied() for layer in layers.values()):
            raise UserError(f"annotate-push: there is a dataset already in {_target(context)}; choose another target")

    def rounds(self, context: Context[AnnotatePushParams]) -> Sequence[Round]:
        levels = range(context.params.num_mips + 1)
        return [*(WriteLayer(name, level) for name in _given(context) for level in levels), Close()]

    def finish(self, context: Context[AnnotatePushParams]) -> StageResult:
        params, image = context.params, _Layer.of(context, "image")
        info = image.levels[0]
        properties: dict[str, Any] = {
            "format": params.format, "uri": Location.parse(_target(context)).root, "name": params.name,
            "layers": [LAYERS[name] for name in _given(context)], "shift_xyz": list(params.shift_xyz),
        }  # fmt: skip
        bounds = Bounds(minimum_xyz=info.start_zyx[::-1], maximum_xyz=info.stop_zyx[::-1])
        output = Output("volume_files", info.voxel_size_nm_xyz, bounds, properties)
        largest = next((int(data["largest"]) for _, data in context.results(Close.name)), 0)
        z, y, x = info.shape_zyx
        return StageResult({DATASET: output}, {"voxels": float(z * y * x), "largest_label": float(largest)})

"""convert: a volume from any format that is read into any that is written, chunk by chunk.

A task is a box of whole chunks, shards or files of the target: no two tasks write to one file (HDF5:
to one page of it). Voxels are moved, never resampled; levels of the pyramid are made from the level
below.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from happyneurons.errors import TaskError, UserError
from happyneurons.jobs.stage import (
    Context,
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.stages.convert.params import ConvertParams
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    import numpy as np

    from happyneurons.formats.base import Reader, Writer
    from happyneurons.formats.blocks import Box
    from happyneurons.stages.convert.plan import Plan
    from happyneurons.store.triples import Triple

PARTS = 4
"""A task is read and written in about so many parts."""


def _plan(context: Context[ConvertParams]) -> Plan:
    from happyneurons.stages.convert.plan import make_plan

    plan: Plan = context.once("plan", lambda: make_plan(context, _reader(context)))
    return plan


def _reader(context: Context[ConvertParams]) -> Reader:
    from happyneurons.stages.convert.plan import open_source

    reader: Reader = context.once("reader", lambda: open_source(context))
    return reader


def _writer(context: Context[ConvertParams]) -> Writer:
    from happyneurons.formats.base import WriteOptions
    from happyneurons.formats.registry import make_writer

    def make() -> Writer:
        params, plan = context.params, _plan(context)
        shard_bytes = params.task_mb * 1_000_000 if params.sharded else 0
        options = WriteOptions(
            params.chunk_px, params.shard_px, params.compress, context.threads, params.hdf5_compression == "gzip",
            shard_bytes,
        )  # fmt: skip
        return make_writer(_target(context), params.format, plan.levels, options)

    writer: Writer = context.once("writer", make)
    return writer


def _output(context: Context[ConvertParams]) -> str:
    """Name of the output: what other stages read, or files in another format or at another place."""
    if context.params.target is not None or context.params.format != "precomputed":
        return "files"
    return _plan(context).levels[0].kind


def _target(context: Context[ConvertParams]) -> str:
    if context.params.target is not None:
        return context.params.target
    folder = context.output_uri(_output(context))
    return {"hdf5": f"{folder}/volume.h5"}.get(context.params.format, folder)


def _claimed(context: Context[ConvertParams]) -> bool:
    return context.params.target is None or context.output_store("files").exists("claim.json")


class WriteBlocks(Round):
    """Task: a box of the target at full resolution."""

    name = "blocks"

    def prepare(self, context: Context[ConvertParams]) -> None:
        writer = _writer(context)
        if context.params.target is not None:
            # From now on what lies there is this job's: a later attempt goes on with it.
            context.output_store("files").put_json("claim.json", {"target": context.params.target})
        writer.prepare()

    def plan(self, context: Context[ConvertParams]) -> Iterable[Task]:
        yield from _tasks(context, 0)

    def run(self, task: Task, context: Context[ConvertParams]) -> TaskResult:
        from happyneurons.formats.blocks import boxes
        from happyneurons.store.triples import triple

        (first, last), writer = task.payload["box"], _writer(context)
        # In parts, so that one can be read while another is written.
        shape = _shape(context, 0, context.params.task_mb * 1_000_000 // PARTS)
        parts = list(boxes(triple(first), triple(last), writer.grid_zyx(0), shape))
        at_source = _plan(context).at_source(writer.grid_zyx(0))
        piece = writer.piece_zyx(0)
        in_pieces = piece is not None and _reader(context).in_pieces(at_source, piece)
        found = (_write_pieces if in_pieces else _write_parts)(context, parts)
        return _result(context, 0, first, last, found)


def _write_parts(context: Context[ConvertParams], parts: Sequence[Box]) -> int:
    """Read and write parts whole, the next one while one is written. Returns the greatest label."""
    from happyneurons.formats.ahead import read_ahead, two_memories
    from happyneurons.stages.convert.plan import cast

    plan, reader, writer = _plan(context), _reader(context), _writer(context)
    dtype, largest = plan.levels[0].dtype, 0
    at_source = [(plan.at_source(start), plan.at_source(stop)) for start, stop in parts]
    blocks = read_ahead(reader.read_to, at_source, context.once("memories", two_memories))
    for (start, _), (low, _), block in zip(parts, at_source, blocks, strict=True):
        found = cast(block, dtype, reader.uri, low)
        if reader.dtype != dtype or not writer.adopt(reader, low, start, block.shape, lambda: None):
            writer.write(0, start, found)
        _verify(context, 0, start, found)
        largest = max(largest, _largest_in(context, found))
    return largest


def _write_pieces(context: Context[ConvertParams], parts: Sequence[Box]) -> int:
    """Have the writer read pieces of parts as it needs them. Returns the greatest label."""
    import numpy as np

    from happyneurons.formats.blocks import boxes
    from happyneurons.formats.pieces import in_threads
    from happyneurons.stages.convert.plan import cast

    plan, reader, writer = _plan(context), _reader(context), _writer(context)
    dtype, threads = plan.levels[0].dtype, max(2, context.threads)
    piece = writer.piece_zyx(0)
    assert piece is not None
    found: list[int] = []  # appended to by several threads

    def read(start: Triple, stop: Triple) -> np.ndarray:
        low = plan.at_source(start)
        block = cast(reader.read(low, plan.at_source(stop)), dtype, reader.uri, low)
        found.append(_largest_in(context, block))
        return block

    for start, stop in parts:
        pieces = list(boxes(start, stop, writer.grid_zyx(0), piece))
        shape = np.subtract(stop, start).tolist()

        def check(pieces: Sequence[Box] = pieces) -> None:
            deque(in_threads(read, pieces, threads), maxlen=0)

        if reader.dtype != dtype or not writer.adopt(reader, plan.at_source(start), start, shape, check):
            writer.write_from(0, start, stop, read)
        if context.params.verify:
            written = writer.read(0, start, stop)
            for low, high in pieces:
                at = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))
                _compare(context, low, written[at], read(low, high))
    return max(found)


class WriteLevel(Round):
    """Task: a box of one level of the pyramid."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = f"mip_{level}"  # type: ignore[misc]

    def plan(self, context: Context[ConvertParams]) -> Iterable[Task]:
        if self.level < len(_plan(context).levels):
            yield from _tasks(context, self.level)

    def run(self, task: Task, context: Context[ConvertParams]) -> TaskResult:
        from happyneurons.formats.levels import level_block

        start, stop = task.payload["box"]
        block = level_block(_writer(context), self.level, start, stop)
        _writer(context).write(self.level, start, block)
        _verify(context, self.level, start, block)
        return _result(context, self.level, start, stop)


class Close(Round):
    """Task: whatever describes the finished volume."""

    name = "close"

    def plan(self, context: Context[ConvertParams]) -> Iterable[Task]:
        yield Task("properties")

    def run(self, task: Task, context: Context[ConvertParams]) -> TaskResult:
        _writer(context).close(_largest(context))
        return TaskResult()


def _tasks(context: Context[ConvertParams], level: int) -> Iterable[Task]:
    from happyneurons.formats.blocks import boxes

    writer, info = _writer(context), _plan(context).levels[level]
    shape = _shape(context, level, context.params.task_mb * 1_000_000)
    for start, stop in boxes(info.start_zyx, info.stop_zyx, writer.grid_zyx(level), shape):
        name = "_".join(f"{a}-{b}" for a, b in zip(start, stop, strict=True))
        yield Task(name.replace("--", "-m"), {"box": [list(start), list(stop)]})


def _shape(context: Context[ConvertParams], level: int, limit_bytes: int) -> Triple:
    """Whole units of the target, as many as fit into so many bytes; at least one."""
    from happyneurons.formats.blocks import task_shape

    writer, info = _writer(context), _plan(context).levels[level]
    sections = level == 0 and _reader(context).sections
    return task_shape(writer.unit_zyx(level), info.shape_zyx, info.dtype.itemsize, limit_bytes, sections)


def _verify(context: Context[ConvertParams], level: int, start: Sequence[int], block: np.ndarray) -> None:
    """Look at what was written of a block once more, if asked. Raises TaskError."""
    if context.params.verify:
        stop = [a + n for a, n in zip(start, block.shape, strict=True)]
        _compare(context, start, _writer(context).read(level, start, stop), block)


def _compare(context: Context[ConvertParams], start: Sequence[int], found: np.ndarray, block: np.ndarray) -> None:
    import numpy as np

    if not np.array_equal(found, block, equal_nan=block.dtype.kind == "f"):
        where = _writer(context).location
        raise TaskError(f"{where}: the box from {tuple(start)} (zyx) reads otherwise than it was written")


def _largest_in(context: Context[ConvertParams], block: np.ndarray) -> int:
    return int(block.max()) if _plan(context).levels[0].labels else 0


def _result(
    context: Context[ConvertParams], level: int, start: Sequence[int], stop: Sequence[int], largest: int | None = None
) -> TaskResult:
    info = _plan(context).levels[level]
    voxels = math.prod(b - a for a, b in zip(start, stop, strict=True))
    data = {"largest": largest} if info.labels and largest is not None else {}
    return TaskResult(data, voxels=voxels, bytes=voxels * info.dtype.itemsize)


def _largest(context: Context[ConvertParams]) -> int:
    return max((int(data.get("largest", 0)) for _, data in context.results(WriteBlocks.name)), default=0)


class Convert(Stage[ConvertParams]):
    name, version, summary = "convert", "2", "A volume from any format into any other"
    Params = ConvertParams
    inputs = {
        "volume": InputSpec(
            ("image_volume", "segmentation", "mask", "section_stack"), "the volume, unless `source` names it",
            optional=True,
        )
    }  # fmt: skip
    outputs = {
        "image": OutputSpec("image_volume", "the volume as precomputed, if it is one of grey values", True),
        "segmentation": OutputSpec("segmentation", "the volume as precomputed, if it is one of labels", True),
        "files": OutputSpec("volume_files", "the volume in another format, or at `target`", True),
    }

    def fingerprint(self, params: ConvertParams) -> str | None:
        from happyneurons.formats.registry import identity

        return None if params.source is None else identity(params.source, params.source_format)

    def check(self, context: Context[ConvertParams]) -> None:
        if (context.params.source is None) == (context.optional_input("volume") is None):
            raise UserError("convert: give either params.source or the input `volume`")
        _reader(context).check()
        writer = _writer(context)
        if not _claimed(context) and writer.occupied():
            raise UserError(
                f"target {writer.location}: there is something already; remove it, or choose another place (another "
                "layer: ?NAME)"
            )

    def rounds(self, context: Context[ConvertParams]) -> Sequence[Round]:
        levels = [WriteLevel(level) for level in range(1, context.params.num_mips + 1)]
        return [WriteBlocks(), *levels, Close()]

    def finish(self, context: Context[ConvertParams]) -> StageResult:
        plan, name, writer = _plan(context), _output(context), _writer(context)
        info = plan.levels[0]
        bounds = Bounds(minimum_xyz=info.start_zyx[::-1], maximum_xyz=info.stop_zyx[::-1])
        properties = {
            "source": _reader(context).uri, "format": writer.format, "uri": writer.uri(), "kind": info.kind,
            "dtype": info.dtype.name, "levels": len(plan.levels),
        }  # fmt: skip
        metrics = {"voxels": float(bounds.shape_zyx[0] * bounds.shape_zyx[1] * bounds.shape_zyx[2])}
        if info.labels:
            metrics["largest_label"] = float(_largest(context))
        output = Output(self.outputs[name].kind, info.voxel_size_nm_xyz, bounds, properties)
        return StageResult({name: output}, metrics)

"""The rounds of ffn-train: coordinates, then blocks of training and judging in turn, then the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np

from happyneurons.ffn.examples import Patch
from happyneurons.ffn.sampling import BlockCoordinates, partition_map
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.ffn_train.params import FfnTrainParams
from happyneurons.stages.ffn_train.session import (
    PARTITIONS_ROUND,
    Session,
    judge_round,
    mean_path,
    shard_path,
    train_round,
)
from happyneurons.stages.ffn_train.volumes import Region

BLOCK = 192
"""Edge of the blocks that regions are partitioned in, voxels."""
SAMPLES = 6
"""Patches shown after each block."""

Ffn = Context[FfnTrainParams]


def _boxes(region: Region) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    axes = (range(a, b, BLOCK) for a, b in zip(region.start_zyx, region.stop_zyx, strict=True))
    for start in product(*axes):
        yield start, tuple(min(a + BLOCK, b) for a, b in zip(start, region.stop_zyx, strict=True))


class Partitions(Round):
    """Task: a block of a region. Writes its coordinates; tells how many there are, and grey values."""

    name = PARTITIONS_ROUND

    def plan(self, context: Ffn) -> Iterable[Task]:
        for region in Session.of(context).regions:
            for start, stop in _boxes(region):
                ends = "-".join("_".join(str(v) for v in corner) for corner in (start, stop))
                yield Task(
                    key=f"{region.number:04d}-{ends}",
                    payload={"region": region.number, "start_zyx": list(start), "stop_zyx": list(stop)},
                    cost=float(np.prod(np.subtract(stop, start))),
                )

    def run(self, task: Task, context: Ffn) -> TaskResult:
        session = Session.of(context)
        region, geometry = session.regions[task.payload["region"]], session.geometry
        block = np.array(task.payload["start_zyx"]), np.array(task.payload["stop_zyx"])
        low, high = session.inner_box(region, geometry)
        low, high = np.maximum(low, block[0]), np.minimum(high, block[1])
        partitions = np.zeros((0, 0, 0), np.uint8)
        if (low < high).all():
            half = np.array(geometry.fov_zyx) // 2
            labels = session.cells.labels(region.labels, (low - half).tolist(), (high + half).tolist())
            inner = tuple(slice(int(h), int(n - h)) for h, n in zip(half, labels.shape, strict=True))
            partitions = partition_map(labels, geometry.fov_zyx, inner)
        rng = np.random.default_rng([context.params.seed, region.number, *np.abs(block[0]).tolist()])
        found = BlockCoordinates.of(partitions, low, rng)
        path = f"coordinates/{task.key}.npz"
        context.output_store("model").put_arrays(path, **found.arrays())
        data = {"region": region.number, "coordinates": path, "partitions": found.counts}
        if session.needs_grey_values and not region.validation:
            image = session.cells.volume(region.image).read(block[0].tolist(), block[1].tolist())
            whole = image.dtype.kind in "ui"
            grey = image.astype(np.int64 if whole else np.float64)
            sums = image.size, grey.sum().item(), (grey * grey).sum().item()
            data.update(zip(("count", "total", "squares"), sums, strict=True))
        return TaskResult(data=data, voxels=int(np.prod(block[1] - block[0])))


class TrainBlock(Round):
    """Task: a shard. It trains a block of steps and leaves its state."""

    def __init__(self, block: int) -> None:
        self._block = block
        self.name = train_round(block)  # type: ignore[misc]

    def prepare(self, context: Ffn) -> None:
        session = Session.of(context)
        history, options = session.history, session.options
        if self._block == 1:
            session.check_coordinates()
        if history.wants(self._block):
            history.report()
            best = history.best()
            session.clear_checkpoints(options.last_step(self._block - 1), best["step"] if best else 0)

    def plan(self, context: Ffn) -> Iterable[Task]:
        session = Session.of(context)
        if not session.history.wants(self._block):
            return
        steps = session.options.last_step(self._block) - session.options.last_step(self._block - 1)
        for shard in range(session.options.shards):
            yield Task(key=f"shard-{shard:04d}", payload={"shard": shard}, cost=float(steps))

    def run(self, task: Task, context: Ffn) -> TaskResult:
        session = Session.of(context)
        trainer, shard = session.trainer, task.payload["shard"]
        trainer.restore(session.state_after(self._block - 1))
        source = session.source(validation=False)
        loss = trainer.run_block(source, self._block - 1, shard, fine_tuning=session.initial_model is not None)
        step = session.options.last_step(self._block)
        session.store.put_arrays(shard_path(step, shard), **trainer.state())
        context.log.info("step %d of %d, shard %d: loss %.4f", step, session.options.steps, shard, loss)
        return TaskResult(data={"loss": loss})


class JudgeBlock(Round):
    """Task: some of the validation patches, by the mean of the shards. The first one writes that mean."""

    def __init__(self, block: int) -> None:
        self._block = block
        self.name = judge_round(block)  # type: ignore[misc]

    def prepare(self, context: Ffn) -> None:
        if not self._block:
            Session.of(context).check_coordinates()

    def plan(self, context: Ffn) -> Iterable[Task]:
        session = Session.of(context)
        if self._block and not session.history.wants(self._block):
            return
        for part in range(session.options.shards):
            yield Task(key=f"part-{part:04d}", payload={"part": part}, cost=session.options.block_steps / 4)

    def run(self, task: Task, context: Ffn) -> TaskResult:
        from happyneurons.ffn.pictures import samples_png
        from happyneurons.ffn.validation import judge

        session, part = Session.of(context), task.payload["part"]
        options, trainer = session.options, session.trainer
        state = session.mean_of_shards(self._block) if self._block else trainer.start
        step = options.last_step(self._block)
        if part == 0:
            session.store.put_arrays(mean_path(step), **state)
        trainer.restore(state)
        shown: dict[int, Patch] = {}
        counts = judge(
            trainer.predict,
            session.architecture,
            session.source(validation=True),
            range(part, options.validation_patches, options.shards),
            seed=options.seed,
            batch_size=options.batch_size,
            seen=lambda number, patch: shown.update({number: patch}) if len(shown) < SAMPLES else None,
        )
        if part == 0:
            pictures = samples_png([patch for _, patch in sorted(shown.items())])
            session.store.put(f"samples/{step:08d}.png", pictures)
        return TaskResult(data={"counts": counts})


class Export(Round):
    """One task: the state that was judged best becomes the model."""

    name = "export"

    def prepare(self, context: Ffn) -> None:
        session = Session.of(context)
        if session.history.last_block() is not None:
            session.history.report()

    def plan(self, context: Ffn) -> Iterable[Task]:
        history = Session.of(context).history
        last, best = history.last_block(), history.best()
        if last is not None and best is not None:
            payload = {"best": best, "last_step": Session.of(context).options.last_step(last)}
            yield Task(key=f"step-{int(best['step']):08d}", payload=payload)

    def run(self, task: Task, context: Ffn) -> TaskResult:
        from happyneurons.ffn.model import Model, save_model
        from happyneurons.ffn.training import weights_of

        session, params = Session.of(context), context.params
        best, last_step = task.payload["best"], task.payload["last_step"]
        state = session.store.get_arrays(mean_path(int(best["step"])))
        training: dict[str, Any] = {
            "figures": best,
            "last_step": last_step,
            "seed": params.seed,
            "batch_size": params.batch_size,
            "shards": params.shards,
        }
        if session.voxel_size_nm_xyz is not None:
            training["voxel_size_nm_xyz"] = list(session.voxel_size_nm_xyz)
        save_model(session.store, Model(session.architecture, weights_of(state), training))
        figures = {name: value for name, value in best.items() if name != "step"}
        data = {**figures, "step": float(last_step), "best_step": best["step"]}
        if session.initial_model is not None:
            data["initial_f1"] = session.history.rows(0)[0]["f1"]
        return TaskResult(data=data)

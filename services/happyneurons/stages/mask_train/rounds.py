"""The rounds of mask-train: a survey of what is annotated, blocks of training and judging in turn, the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.mask_train.params import MaskTrainParams
from happyneurons.stages.mask_train.session import (
    CELL,
    SURVEY_ROUND,
    Session,
    judge_round,
    mean_path,
    shard_path,
    train_round,
)

TILE = 2048
"""Side of what one task of the survey reads, px; a multiple of CELL."""
SAMPLES = 6
"""Patches shown after each block."""

MaskTrain = Context[MaskTrainParams]


class Survey(Round):
    """Task: a tile of a section. Counts its labels by squares, and grey values."""

    name = SURVEY_ROUND

    def plan(self, context: MaskTrain) -> Iterable[Task]:
        session = Session.of(context)
        for sections in session.sections:
            volume = session.pictures.image(sections.image)
            (y0, x0), (y1, x1) = volume.start_zyx[1:], volume.stop_zyx[1:]
            held_out = () if sections.validation else session.held_out_sections
            for z in sections.z or session.pictures.z_range(sections):
                if z in held_out:
                    continue
                for y in range(y0 // TILE * TILE, y1, TILE):
                    for x in range(x0 // TILE * TILE, x1, TILE):
                        low, high = [max(y, y0), max(x, x0)], [min(y + TILE, y1), min(x + TILE, x1)]
                        ends = "-".join(str(v) for v in (*low, *high))
                        payload = {"sections": sections.number, "z": z, "start_yx": low, "stop_yx": high}
                        yield Task(key=f"{sections.number:04d}-{z:06d}-{ends}", payload=payload)

    def run(self, task: Task, context: MaskTrain) -> TaskResult:
        session, number, z = Session.of(context), task.payload["sections"], task.payload["z"]
        low, high = task.payload["start_yx"], task.payload["stop_yx"]
        image, targets = session.pictures.read(session.sections[number], z, low, high)
        classes = 1 + len(context.params.classes)
        place, counts = [], []
        for y in range(low[0] // CELL * CELL, high[0], CELL):
            for x in range(low[1] // CELL * CELL, high[1], CELL):
                part = tuple(slice(max(a - o, 0), a - o + CELL) for a, o in zip((y, x), low, strict=True))
                own = targets[part]
                found = np.bincount(own[own >= 0].ravel(), minlength=classes)
                if found.any():
                    place.append((z, y, x))
                    counts.append(found)
        total = np.sum(counts, axis=0) if counts else np.zeros(classes, np.int64)
        path = f"survey/{task.key}.npz"
        if counts:
            session.store.put_arrays(path, place_zyx=np.array(place, np.int64), counts=np.array(counts, np.int64))
        else:
            session.store.put_arrays(
                path, place_zyx=np.zeros((0, 3), np.int64), counts=np.zeros((0, classes), np.int64)
            )
        grey = image.astype(np.float64)
        data: dict[str, Any] = {
            "sections": number, "z": z, "cells": path, "counts": total.tolist(),
            "grey": [image.size, float(grey.sum()), float((grey * grey).sum())],
        }  # fmt: skip
        return TaskResult(data=data, voxels=int(image.size))


class TrainBlock(Round):
    """Task: a shard. It trains a block of steps and leaves its state."""

    def __init__(self, block: int) -> None:
        self._block = block
        self.name = train_round(block)  # type: ignore[misc]

    def prepare(self, context: MaskTrain) -> None:
        session = Session.of(context)
        if self._block == 1:
            session.check_annotation()
        if session.history.wants(self._block):
            session.history.report()
            best = session.history.best()
            session.clear_checkpoints(session.options.last_step(self._block - 1), best["step"] if best else 0)

    def plan(self, context: MaskTrain) -> Iterable[Task]:
        session = Session.of(context)
        if not session.history.wants(self._block):
            return
        steps = session.options.last_step(self._block) - session.options.last_step(self._block - 1)
        for shard in range(session.options.shards):
            yield Task(key=f"shard-{shard:04d}", payload={"shard": shard}, cost=float(steps))

    def run(self, task: Task, context: MaskTrain) -> TaskResult:
        session = Session.of(context)
        trainer, shard = session.trainer, task.payload["shard"]
        trainer.restore(session.state_after(self._block - 1))
        loss = trainer.run_block(session.draw, self._block - 1, shard)
        step = session.options.last_step(self._block)
        session.store.put_arrays(shard_path(step, shard), **trainer.state())
        context.log.info("step %d of %d, shard %d: loss %.4f", step, session.options.steps, shard, loss)
        return TaskResult(data={"loss": loss})


class JudgeBlock(Round):
    """Task: some of the validation patches, by the mean of the shards. The first one writes that mean."""

    def __init__(self, block: int) -> None:
        self._block = block
        self.name = judge_round(block)  # type: ignore[misc]

    def plan(self, context: MaskTrain) -> Iterable[Task]:
        session = Session.of(context)
        if not session.history.wants(self._block):
            return
        for part in range(session.options.shards):
            yield Task(key=f"part-{part:04d}", payload={"part": part}, cost=session.options.block_steps / 4)

    def run(self, task: Task, context: MaskTrain) -> TaskResult:
        from happyneurons.unet.pictures import Sample, samples_png
        from happyneurons.unet.validation import count

        session, part = Session.of(context), task.payload["part"]
        trainer, state = session.trainer, session.mean_of_shards(self._block)
        step, classes = session.options.last_step(self._block), len(context.params.classes)
        if part == 0:
            session.store.put_arrays(mean_path(step), **state)
        trainer.restore(state)
        table = np.zeros((classes, 3), np.int64)
        samples: list[Sample] = []
        for place in session.validation_places()[part :: session.options.shards]:
            image, target = session.validation_patch(place)
            predicted = trainer.predict(image[np.newaxis])[0].argmax(axis=-1)
            table += count(predicted, target, classes)
            if part == 0 and len(samples) < SAMPLES:
                samples.append(Sample(image, target, predicted))
        if part == 0:
            session.store.put(f"samples/{step:08d}.png", samples_png(samples))
        return TaskResult(data={"counts": table.tolist()})


class Export(Round):
    """One task: the state that was judged best becomes the model."""

    name = "export"

    def prepare(self, context: MaskTrain) -> None:
        session = Session.of(context)
        if session.history.last_block() is not None:
            session.history.report()

    def plan(self, context: MaskTrain) -> Iterable[Task]:
        session = Session.of(context)
        last, best = session.history.last_block(), session.history.best()
        if last is not None and best is not None:
            payload = {"best": best, "last_step": session.options.last_step(last)}
            yield Task(key=f"step-{int(best['step']):08d}", payload=payload)

    def run(self, task: Task, context: MaskTrain) -> TaskResult:
        from happyneurons.ffn.training import weights_of
        from happyneurons.unet.model import Model, save_model

        session, params = Session.of(context), context.params
        best, last_step = task.payload["best"], task.payload["last_step"]
        training: dict[str, Any] = {
            "figures": best,
            "last_step": last_step,
            "seed": params.seed,
            "batch_size": params.batch_size,
            "shards": params.shards,
            "patch_px": params.patch_px,
        }
        if session.voxel_size_nm_xyz is not None:
            training["voxel_size_nm_xyz"] = list(session.voxel_size_nm_xyz)
        weights = weights_of(session.store.get_arrays(mean_path(int(best["step"]))))
        save_model(session.store, Model(session.architecture, weights, training))
        figures = {name: value for name, value in best.items() if name != "step"}
        return TaskResult(data={**figures, "step": float(last_step), "best_step": best["step"]})

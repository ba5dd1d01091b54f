"""The first round of mask-train: what is annotated. Those of the training itself: happyneurons.training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.mask_train.params import MaskTrainParams
from happyneurons.stages.mask_train.session import CELL, SURVEY_ROUND, Session

TILE = 2048
"""Side of what one task of the survey reads, px; a multiple of CELL."""

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
        session.store.put_arrays(
            path, place_zyx=np.array(place, np.int64).reshape(-1, 3),
            counts=np.array(counts, np.int64).reshape(-1, classes),
        )  # fmt: skip
        grey = image.astype(np.float64)
        data: dict[str, Any] = {
            "sections": number, "z": z, "cells": path, "counts": total.tolist(),
            "grey": [image.size, float(grey.sum()), float((grey * grey).sum())],
        }  # fmt: skip
        return TaskResult(data=data, voxels=int(image.size))

"""Mask: where cell bodies, vessels, folds, … are, in a whole volume, and which of them are one object."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageResult
from happyneurons.stages.mask.params import MaskParams

MASK, PROBABILITY, INSTANCES, OBJECTS = "mask", "probability", "instances", "objects"


class Mask(Stage[MaskParams]):
    name, version = "mask", "1"
    summary = "Masks of cell bodies, vessels, tissue, folds, … by a network or grey values, and their objects"
    Params = MaskParams
    inputs = {
        "image": InputSpec("image_volume", "grey values", optional=True),
        "model": InputSpec("model", "of mask-train; for method network", optional=True),
        "probability": InputSpec(
            ("image_volume", "mask"),
            "probabilities of an earlier job (uint8, 255 is sure, a channel for each class) instead of image and "
            "model: other thresholds and objects without computing the network again",
            optional=True,
        ),
    }
    outputs = {
        MASK: OutputSpec("mask", "class of each voxel: 0 is none, 1 the first class, …; for segment's input mask"),
        PROBABILITY: OutputSpec("image_volume", "probabilities, 255 is sure, a channel for each class", optional=True),
        INSTANCES: OutputSpec(
            "segmentation", "objects, ids 1, 2, …; for segment's input initial_segmentation", optional=True
        ),
        OBJECTS: OutputSpec("table", "objects: id, class, voxels, middle (x, y, z, voxels)", optional=True),
    }

    def fingerprint(self, params: MaskParams) -> str | None:
        if params.seeds is None:
            return None
        from happyneurons.annotations.points import read_file

        return hashlib.sha256(read_file(params.seeds)).hexdigest()

    def check(self, context: Context[MaskParams]) -> None:
        from happyneurons.stages.mask.subject import Subject

        Subject.of(context).check()

    def rounds(self, context: Context[MaskParams]) -> Sequence[Round]:
        from happyneurons.stages.mask import rounds as r
        from happyneurons.stages.mask.subject import Subject
        from happyneurons.unions.output import Level

        subject, levels = Subject.of(context), range(1, context.params.num_mips + 1)
        rounds: list[Round] = [] if subject.given else [r.Predict()]
        if subject.has_objects:
            if subject.grown and subject.points is None:
                rounds.append(r.Seeds())
            rounds += [r.Label(), r.Match(), *r.unions_of(context).rounds(), r.Remap(), r.Table()]
            rounds += [Level(INSTANCES, level) for level in levels]
        else:
            rounds.append(r.Remap())
        return [*rounds, *(r.MaskLevel(level) for level in levels)]

    def finish(self, context: Context[MaskParams]) -> StageResult:
        from happyneurons.stages.mask import rounds as r
        from happyneurons.stages.mask.subject import Subject

        subject = Subject.of(context)
        size, bounds, names = subject.voxel_size_nm_xyz, subject.bounds, subject.class_names
        whole = float(np.prod(bounds.shape_zyx))
        voxels = np.sum([d["voxels"] for _, d in context.results(r.Remap.name)] or [[0] * len(names)], axis=0)
        metrics = {f"{name}_fraction": float(n) / whole for name, n in zip(names, voxels, strict=True)}
        metrics["mask_fraction"] = float(voxels.sum()) / whole
        properties = {"classes": list(names), "values": {name: number for number, name in enumerate(names, 1)}}

        def volume(kind: str, **more: object) -> Output:
            return Output(kind, size, bounds, {**properties, **more})  # type: ignore[arg-type]

        outputs = {MASK: volume("mask")}
        if not subject.given:
            outputs[PROBABILITY] = volume("image_volume")
        if subject.has_objects:
            joined = r.unions_of(context).figures(context)
            found = np.sum([d["objects"] for _, d in context.results(r.Table.name)], axis=0)
            labelled = sum(d["unreached"] for _, d in context.results(r.Label.name))
            metrics |= {f"{name}_objects": float(n) for name, n in zip(names, found, strict=True)}
            metrics |= {"objects": float(joined["kept"]), "dropped_objects": float(joined["dropped"])}
            # Voxels of classes that grow from seeds which no seed reached.
            metrics["unreached_fraction"] = labelled / whole
            outputs[INSTANCES] = volume("segmentation", segments=joined["kept"])
            outputs[OBJECTS] = Output("table")
            store = context.output_store(OBJECTS)
            for folder in ("cells", "seeds", "rows", "found", "join", "ids", "mapping"):
                for path in list(store.list(folder)):
                    store.delete(path)
        return StageResult(outputs=outputs, metrics=metrics)

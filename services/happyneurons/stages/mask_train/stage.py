"""Mask-train: a U-Net that finds cell bodies, vessels, mitochondria, … from a few annotated sections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.layers import nm
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageResult
from happyneurons.stages.mask_train.params import MaskTrainParams
from happyneurons.stages.mask_train.rounds import Survey
from happyneurons.stages.mask_train.session import Session
from happyneurons.store.artifacts import ArtifactKind
from happyneurons.training.rounds import finish_training, training_rounds
from happyneurons.training.session import OUTPUT

LABELS: tuple[ArtifactKind, ...] = ("segmentation", "mask", "image_volume")


class MaskTrain(Stage[MaskTrainParams]):
    name, version = "mask-train", "1"
    summary = "Trains a 2D U-Net for masks from sparsely annotated sections, from scratch or from another model"
    Params = MaskTrainParams
    inputs = {
        "image": InputSpec("image_volume", "images to learn from", many=True),
        "labels": InputSpec(
            LABELS, "what was drawn on some of their sections, in the same order; any resolution; see classes",
            many=True,
        ),
        "validation_image": InputSpec("image_volume", "images to judge by", optional=True, many=True),
        "validation_labels": InputSpec(LABELS, "what was drawn on them", optional=True, many=True),
        "initial_model": InputSpec("model", "where to start from, instead of random weights", optional=True),
    }  # fmt: skip
    outputs = {
        OUTPUT: OutputSpec(
            "model",
            "the network, at the step judged best; beside it history.json, curves.png and samples/ (image, wanted, "
            "predicted), written as training goes",
        )
    }

    def check(self, context: Context[MaskTrainParams]) -> None:
        params, session = context.params, Session.of(context)
        session.check_blocks()
        _check_classes(params)
        multiple = params.architecture(0.0, 1.0).multiple_px
        if params.patch_px % multiple:
            raise UserError(
                f"mask-train: params.patch_px is {params.patch_px}; this network needs a multiple of {multiple}",
                [("params.patch_px", f"a multiple of {multiple}")],
            )
        if params.validation_sections and context.inputs.get("validation_image"):
            raise UserError("mask-train: give validation volumes or params.validation_sections, not both")
        _check_volumes(session)
        _check_initial(session)
        if not any(s.validation for s in session.sections):
            context.log.warning("judged by the training sections: give validation_sections or validation volumes")

    def rounds(self, context: Context[MaskTrainParams]) -> Sequence[Round]:
        return [Survey(), *training_rounds(Session.of(context))]

    def finish(self, context: Context[MaskTrainParams]) -> StageResult:
        from happyneurons.unet.model import describe, load_model

        metrics = finish_training(Session.of(context), "survey")
        model = load_model(context.output_uri(OUTPUT))
        return StageResult(outputs={OUTPUT: Output("model", properties=describe(model))}, metrics=metrics)


def _check_classes(params: MaskTrainParams) -> None:
    names = params.class_names
    if len(set(names)) != len(names):
        raise UserError("mask-train: params.classes: two classes have the same name", [("params.classes", "own names")])
    if sum(not c.values for c in params.classes) > 1:
        raise UserError(
            "mask-train: params.classes: only one class may leave its values out; which of the labels' values mean "
            "the others?",
            [("params.classes", "values for all but one class")],
        )
    used = [v for c in params.classes for v in c.values] + [*params.background_values, *params.unlabelled_values]
    twice = sorted({v for v in used if used.count(v) > 1})
    if twice:
        raise UserError(
            f"mask-train: the labels' value {twice[0]} is given two meanings; see params.classes, background_values "
            "and unlabelled_values"
        )


def _check_volumes(session: Session) -> None:
    size = session.pictures.image(session.sections[0].image).voxel_size_nm_xyz
    for sections in session.sections:
        volume, layer = session.pictures.image(sections.image), session.pictures.labels(sections)
        if volume.dtype.kind not in "uif":
            raise UserError(f"mask-train: {volume.uri} has type {volume.dtype}, grey values were expected")
        if layer.volume.dtype.kind not in "uib":
            raise UserError(f"mask-train: labels have type {layer.volume.dtype}, whole numbers were expected: "
                            f"{layer.volume.uri}")  # fmt: skip
        if not np.allclose(volume.voxel_size_nm_xyz, size, rtol=0.01):
            raise UserError(
                f"mask-train: the volumes differ in voxel size, {nm(size)} and {nm(volume.voxel_size_nm_xyz)}: "
                f"{session.sections[0].image}, {volume.uri}; a network is for one voxel size"
            )
        there = session.pictures.z_range(sections)
        if not len(there) or not layer.cover(volume.start_zyx, volume.stop_zyx):
            raise UserError(
                f"mask-train: image and labels have no voxels in common: {volume.uri}, {layer.volume.uri}; check "
                "offsets and voxel sizes"
            )
        beyond = [z for z in sections.z or () if z not in there]
        if beyond:
            name = "validation_sections" if sections.validation else "sections"
            raise UserError(
                f"mask-train: params.{name} names section {beyond[0]}; image and labels have {there.start} to "
                f"{there.stop - 1}",
                [(f"params.{name}", f"{there.start}-{there.stop - 1}")],
            )


def _check_initial(session: Session) -> None:
    model = session.initial_model
    if model is None:
        return
    own, params = model.architecture, session.params
    if own.classes != params.class_names:
        raise UserError(
            f"mask-train: the initial model knows the classes {', '.join(own.classes)}, params.classes are "
            f"{', '.join(params.class_names)}; give the same ones in the same order"
        )
    if params.patch_px % own.multiple_px:
        raise UserError(f"mask-train: the initial model needs params.patch_px a multiple of {own.multiple_px}")
    known, size = model.voxel_size_nm_xyz, session.voxel_size_nm_xyz
    if known is not None and size is not None and not np.allclose(known[:2], size[:2], rtol=0.1):
        raise UserError(
            f"mask-train: the initial model was trained on voxels of {nm(known)}, these volumes have {nm(size)}; "
            "choose another params.mip or model"
        )

"""FFN-train: a flood-filling network from images and their labels."""

from __future__ import annotations

from collections.abc import Sequence

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageResult
from happyneurons.stages.ffn_train.params import FfnTrainParams
from happyneurons.stages.ffn_train.rounds import Partitions
from happyneurons.stages.ffn_train.session import Session
from happyneurons.stages.ffn_train.volumes import same_voxel_size
from happyneurons.training.rounds import finish_training, training_rounds
from happyneurons.training.session import OUTPUT


class FfnTrain(Stage[FfnTrainParams]):
    name, version = "ffn-train", "3"
    summary = "Trains a flood-filling network from images and labels, from scratch or from another model"
    Params = FfnTrainParams
    inputs = {
        "image": InputSpec("image_volume", "images to learn from", many=True),
        "labels": InputSpec("segmentation", "their labels, in the same order; 0 is background", many=True),
        "validation_image": InputSpec("image_volume", "images to judge by", optional=True, many=True),
        "validation_labels": InputSpec("segmentation", "their labels", optional=True, many=True),
        "initial_model": InputSpec("model", "where to start from, instead of random weights", optional=True),
    }
    outputs = {
        OUTPUT: OutputSpec(
            "model",
            "the network, at the step judged best; beside it history.json, curves.png and samples/ (image, wanted "
            "mask, predicted mask), written as training goes",
        )
    }

    def check(self, context: Context[FfnTrainParams]) -> None:
        params, session = context.params, Session.of(context)
        _check_architecture(params)
        session.check_blocks()
        if params.trained_modules is not None and session.initial_model is None:
            raise UserError(
                "ffn-train: params.trained_modules keeps the other modules of an initial model, and none is given",
                [("params.trained_modules", "left out, or give the input initial_model")],
            )
        if params.validation_fraction and context.inputs.get("validation_image"):
            raise UserError("ffn-train: give validation volumes or params.validation_fraction, not both")
        if not any(r.validation for r in session.regions):
            context.log.warning("judged by the training volumes: give validation volumes, or validation_fraction")
        _check_voxel_sizes(session)
        _check_sizes(session)

    def rounds(self, context: Context[FfnTrainParams]) -> Sequence[Round]:
        return [Partitions(), *training_rounds(Session.of(context))]

    def finish(self, context: Context[FfnTrainParams]) -> StageResult:
        from happyneurons.ffn.model import describe, load_model

        metrics = finish_training(Session.of(context), "coordinates")
        model = load_model(context.output_uri(OUTPUT))
        return StageResult(outputs={OUTPUT: Output("model", properties=describe(model))}, metrics=metrics)


def _check_architecture(params: FfnTrainParams) -> None:
    from pydantic import ValidationError

    given = {k: v for k, v in params.overrides().items() if k in ("fov_zyx", "deltas_zyx")}
    try:
        Architecture(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).replace("zyx", "xyz")
        raise UserError(f"ffn-train: params.{name}: {problem['msg']}", [(f"params.{name}", problem["msg"])]) from None


def _check_voxel_sizes(session: Session) -> None:
    """All volumes and the initial model must be of one voxel size; exchanging z needs cubes."""
    size = session.cells.volume(session.regions[0].image).voxel_size_nm_xyz
    for region in session.regions:
        other = session.cells.volume(region.image).voxel_size_nm_xyz
        if not same_voxel_size(size, other):
            raise UserError(
                f"ffn-train: the volumes differ in voxel size, {size} and {other} nm: {session.regions[0].image}, "
                f"{region.image}; a network is for one voxel size"
            )
    model = session.initial_model
    known = model.training.get("voxel_size_nm_xyz") if model and session.voxel_size_nm_xyz else None
    if known is not None and not same_voxel_size(size, known):
        raise UserError(
            f"ffn-train: the initial model was trained on voxels of {tuple(known)} nm, these volumes have {size} nm; "
            "choose another params.mip or model"
        )
    if session.params.augmentation.permute_axes == "xyz" and not same_voxel_size(size, (size[0],) * 3):
        raise UserError(
            f"ffn-train: params.augmentation.permute_axes: xyz needs cubic voxels, these have {size} nm; give xy",
            [("params.augmentation.permute_axes", "xy or none for these voxels")],
        )


def _check_sizes(session: Session) -> None:
    geometry = session.geometry
    for region in session.regions:
        image = session.cells.volume(region.image)
        if image.dtype.kind not in "uif":
            raise UserError(f"ffn-train: {image.uri} has type {image.dtype}, grey values were expected")
        low, high = session.inner_box(region, geometry)
        if (low >= high).any():
            need = tuple(2 * m + 1 for m in session.margin_zyx(region, geometry))
            what = "validation" if region.validation else "training"
            raise UserError(
                f"ffn-train: a {what} region of {region.shape_zyx} voxels (zyx) is too small for a patch of {need}: "
                "give larger volumes, another validation_fraction or validation_axis, a smaller field of view or "
                "fewer fov_moves"
            )

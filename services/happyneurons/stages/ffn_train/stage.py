"""FFN-train: a flood-filling network from images and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.ffn.augmentation import Augmentation
from happyneurons.ffn.training import TrainingOptions, train
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
from happyneurons.stages.ffn_train.volumes import check_pairs, common_box, mean_and_stddev, normalized, read_pairs
from happyneurons.store.volumes import open_volume

if TYPE_CHECKING:
    import numpy as np

    from happyneurons.ffn.architecture import Architecture
    from happyneurons.ffn.model import Model

OUTPUT = "model"


class FfnTrainParams(TrainingOptions, StageParams):
    depth: int = Field(6, ge=2, le=32, description="Modules of two 3×3×3 convolutions; an initial model has its own")
    features: int = Field(16, ge=1, le=256, description="Channels between convolutions; an initial model has its own")
    fov_xyz: tuple[int, int, int] = Field((21, 21, 21), description="Field of view, voxels, odd numbers")
    deltas_xyz: tuple[int, int, int] = Field(
        (6, 6, 6), description="Step of the field of view, voxels, at most half of it"
    )
    image_mean: float | None = Field(None, description="Grey value that becomes 0; default: the training images' mean")
    image_stddev: float | None = Field(
        None, gt=0, description="Grey values that become 1; default: the training images' standard deviation"
    )
    mip: int = Field(0, ge=0, le=20, description="Level of the volumes' pyramids")
    augmentation: Augmentation = Field(Augmentation(), description="Random changes of the training patches")

    def training_options(self) -> TrainingOptions:
        return TrainingOptions(**{name: getattr(self, name) for name in TrainingOptions.model_fields})


class Train(Round):
    """One task: it checkpoints beside its output and goes on from there when it is started again."""

    name = "train"

    def plan(self, context: Context[FfnTrainParams]) -> Iterable[Task]:
        yield Task(key="train", cost=float(context.params.steps))

    def run(self, task: Task, context: Context[FfnTrainParams]) -> TaskResult:
        from happyneurons.ffn.model import Model, load_model, save_model

        store = context.output_store(OUTPUT)
        if store.exists("model.json"):  # killed after the end, before the journal knew
            return _result(load_model(store.uri))
        params = context.params
        pairs = read_pairs(context.inputs["image"], context.inputs["labels"], params.mip)
        architecture, weights = _start(context, [image for image, _ in pairs])
        validation = read_pairs(
            context.inputs.get("validation_image", ()), context.inputs.get("validation_labels", ()), params.mip
        )
        weights, history = train(
            architecture,
            normalized(pairs, architecture),
            params.training_options(),
            params.augmentation,
            store,
            validation=normalized(validation, architecture) or None,
            weights=weights,
            threads=context.threads,
            log=context.log,
        )
        store.put_json("history.json", history)
        model = Model(
            architecture, weights, {"figures": history[-1], "seed": params.seed, "batch_size": params.batch_size}
        )
        save_model(store, model)
        for path in list(store.list("checkpoints")):
            store.delete(path)
        store.delete("checkpoint.json")
        return _result(model)


def _start(
    context: Context[FfnTrainParams], images: list[np.ndarray]
) -> tuple[Architecture, dict[str, np.ndarray] | None]:
    """Architecture and weights that training starts from (None: random ones)."""
    from happyneurons.ffn.architecture import Architecture
    from happyneurons.ffn.model import load_model

    params, initial = context.params, context.optional_input("initial_model")
    if initial is not None:
        model = load_model(initial.data_uri)
        return model.architecture, model.weights
    mean, stddev = mean_and_stddev(images)
    architecture = Architecture(
        depth=params.depth,
        features=params.features,
        fov_zyx=params.fov_xyz[::-1],
        deltas_zyx=params.deltas_xyz[::-1],
        image_mean=mean if params.image_mean is None else params.image_mean,
        image_stddev=stddev if params.image_stddev is None else params.image_stddev,
    )
    return architecture, None


def _result(model: Model) -> TaskResult:
    figures: dict[str, Any] = model.training["figures"]
    return TaskResult(data=figures)


class FfnTrain(Stage[FfnTrainParams]):
    name, version = "ffn-train", "1"
    summary = "Trains a flood-filling network from images and labels, from scratch or from another model"
    Params = FfnTrainParams
    inputs = {
        "image": InputSpec("image_volume", "images to learn from", many=True),
        "labels": InputSpec("segmentation", "their labels, in the same order; 0 is background", many=True),
        "validation_image": InputSpec("image_volume", "images to judge by", optional=True, many=True),
        "validation_labels": InputSpec("segmentation", "their labels", optional=True, many=True),
        "initial_model": InputSpec("model", "where to start from, instead of random weights", optional=True),
    }
    outputs = {OUTPUT: OutputSpec("model", "the network; history.json beside it tells how training went")}

    def check(self, context: Context[FfnTrainParams]) -> None:
        from pydantic import ValidationError

        from happyneurons.ffn.architecture import Architecture

        params = context.params
        try:
            Architecture(fov_zyx=params.fov_xyz[::-1], deltas_zyx=params.deltas_xyz[::-1])
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0]).replace("zyx", "xyz")
            raise UserError(
                f"ffn-train: params.{name}: {problem['msg']}", [(f"params.{name}", problem["msg"])]
            ) from None
        for image, labels, what in (
            ("image", "labels", "training"),
            ("validation_image", "validation_labels", "validation"),
        ):
            images, truths = context.inputs.get(image, ()), context.inputs.get(labels, ())
            check_pairs(images, truths, what)
            for a, b in zip(images, truths, strict=True):
                common_box(open_volume(a.data_uri, params.mip), open_volume(b.data_uri, params.mip))

    def rounds(self, context: Context[FfnTrainParams]) -> Sequence[Round]:
        return [Train()]

    def finish(self, context: Context[FfnTrainParams]) -> StageResult:
        results = dict(context.results(Train.name))
        if "train" not in results:
            raise UserError("ffn-train: training did not end; see the job's quarantined task")
        from happyneurons.ffn.model import describe, load_model

        model = load_model(context.output_uri(OUTPUT))
        return StageResult(
            outputs={OUTPUT: Output("model", properties=describe(model))},
            metrics={name: float(value) for name, value in results["train"].items()},
        )

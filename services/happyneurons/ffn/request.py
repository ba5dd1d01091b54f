"""google/ffn's InferenceRequest (protobuf text format) as inputs and parameters of the stage `segment`.

What is in a request and cannot be done is refused by name and line; what is left out because it
means nothing here (where results go, batching) is told in `notes`. Fields: ffn/inference/inference.proto
of github.com/google/ffn; what is not given has the value that protobuf gives it there, 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from happyneurons.errors import UserError
from happyneurons.ffn.textproto import Fields, parse
from happyneurons.store.volumes import absolute_uri

_MODEL = re.compile(r"(.*\.)?convstack_3d\.ConvStack3DFFNModel")
_DEFAULT_DEPTH = 9  # of ConvStack3DFFNModel

_UNSUPPORTED = {
    "reference_histogram": "is not supported; match the histogram before (stage normalize) and leave it out",
    "histogram_masks": "is not supported; match the histogram before (stage normalize) and leave it out",
    "shift_mask": "is not supported; give places of large shifts as a mask",
    "shift_mask_fov": "is not supported, as shift_mask is not",
    "shift_mask_scale": "is not supported, as shift_mask is not",
    "shift_mask_threshold": "is not supported, as shift_mask is not",
    "self_prediction": "is not supported; leave it out",
}

EXACT: dict[str, Any] = {
    "skip_explored_fraction": 0.0,
    "keep_connected": False,
    "seed_order": "position",
    "seed_min_edge_distance": 0.0,
    "mirror_faces": False,
    "outside_grey": None,
}
"""Parameters of `segment` with which it does as google/ffn does."""


@dataclass
class SegmentRequest:
    """inputs: URIs by input; params: of the stage segment; notes: what was left out, a line each."""

    inputs: dict[str, list[str]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_request(text: str, *, where: str = "request", image: str | None = None) -> SegmentRequest:
    """A segment job from an InferenceRequest; paths in it are relative to the working folder.

    image: URI of the image volume instead of the request's.
    """
    fields = Fields(parse(text, where), "InferenceRequest", where)
    for name, why in _UNSUPPORTED.items():
        fields.refuse(name, why)
    request = SegmentRequest(params=dict(EXACT))
    request.inputs["image"] = [_image(fields, where, image)]
    request.inputs["model"] = [_model(fields, request, where)]
    _masks(fields, request)
    initial = fields.message("init_segmentation", "DecoratedVolume")
    if initial is not None:
        request.inputs["initial_segmentation"] = [_volume(initial, where)]
    request.params.update(_options(fields, where))
    _seeds(fields, request)
    _movement(fields)
    _bookkeeping(fields, request)
    fields.finish()
    return request


def read_bounding_box(text: str, *, where: str = "bounding box") -> tuple[list[int], list[int]]:
    """(minimum, exclusive maximum) xyz of `start { x: 0 y: 0 z: 0 } size { x: 250 y: 250 z: 250 }`."""
    fields = Fields(parse(text, where), "BoundingBox", where)
    start, size = (_vector(fields, name) for name in ("start", "size"))
    fields.finish()
    if any(n <= 0 for n in size):
        raise UserError(
            f"{where}: size is {size} (xyz); write start {{ x: y: z: }} size {{ x: y: z: }} with sizes above 0"
        )
    return start, [a + n for a, n in zip(start, size, strict=True)]


def set_box(
    request: SegmentRequest,
    box_xyz: tuple[Sequence[int], Sequence[int]] | None,
    subvolume_size_xyz: Sequence[int] | None = None,
    overlap_xyz: Sequence[int] | None = None,
) -> None:
    """What to segment: a box (None: the whole image), in one piece as google/ffn does it unless sizes are given."""
    if box_xyz is not None:
        low, high = box_xyz
        request.params["bounds_xyz"] = [list(low), list(high)]
        if subvolume_size_xyz is None:
            request.params["subvolume_size_xyz"] = [b - a for a, b in zip(low, high, strict=True)]
            request.params["overlap_xyz"] = [0, 0, 0]
    if subvolume_size_xyz is not None:
        request.params["subvolume_size_xyz"] = list(subvolume_size_xyz)
        if overlap_xyz is not None:
            request.params["overlap_xyz"] = list(overlap_xyz)


def _image(fields: Fields, where: str, image: str | None) -> str:
    volume = fields.message("image", "DecoratedVolume")
    if image is not None:
        return absolute_uri(image)
    if volume is None:
        raise UserError(f'{where}: InferenceRequest.image is missing; write image {{ hdf5: "FILE:DATASET" }}')
    return _volume(volume, where)


def _volume(fields: Fields, where: str) -> str:
    fields.refuse("decorator_specs", "is not supported; write the volume as it should be read")
    hdf5, volinfo = fields.one("hdf5"), fields.one("volinfo")
    fields.finish()
    given = hdf5 or volinfo
    if given is None or not isinstance(given.value, str):
        raise UserError(f'{where}: a DecoratedVolume has neither hdf5: "FILE:DATASET" nor volinfo')
    if hdf5 is not None:
        path, separator, dataset = hdf5.value.partition(":")
        if not separator or not dataset or ":" in dataset:
            raise fields.error(hdf5, f"is {hdf5.value!r}; write FILE:DATASET")
        return absolute_uri(f"h5://{path}?{dataset}")
    if not given.value.startswith("precomputed://"):
        raise fields.error(
            given, "describes a VolumeStore volume, which only Google can read; give hdf5, volinfo: "
            "\"precomputed://URI\", or another image (--image URI)"
        )  # fmt: skip
    return absolute_uri(given.value)


def _model(fields: Fields, request: SegmentRequest, where: str) -> str:
    name = fields.one("model_name")
    if name is None or not isinstance(name.value, str) or not _MODEL.fullmatch(name.value):
        wrong = "is missing" if name is None else f"is {name.value!r}"
        line = "" if name is None else f", line {name.line}"
        raise UserError(
            f"{where}{line}: InferenceRequest.model_name {wrong}; only convstack_3d.ConvStack3DFFNModel is supported"
        )
    arguments = _json(fields, "model_args")
    for key in ("fov_size", "deltas"):
        value = arguments.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int) for v in value):
            raise UserError(f"{where}: InferenceRequest.model_args needs {key}, three whole numbers (x, y, z)")
    request.params["fov_xyz"], request.params["deltas_xyz"] = arguments.pop("fov_size"), arguments.pop("deltas")
    request.params["depth"] = arguments.pop("depth", _DEFAULT_DEPTH)
    if arguments.pop("batch_size", None) is not None:
        request.notes.append("model_args.batch_size is left out: each field of view is computed by itself")
    if arguments:
        raise UserError(f"{where}: InferenceRequest.model_args: {', '.join(sorted(arguments))} not supported")
    checkpoint = fields.text("model_checkpoint_path")
    if not checkpoint:
        raise UserError(f"{where}: InferenceRequest.model_checkpoint_path is missing")
    mean, stddev = fields.number("image_mean"), fields.number("image_stddev")
    if not stddev:
        raise UserError(f"{where}: InferenceRequest.image_stddev is missing or 0")
    request.params["image_mean"], request.params["image_stddev"] = mean or 0.0, stddev
    return f"ckpt://{Path(checkpoint).expanduser().resolve()}"


def _options(fields: Fields, where: str) -> dict[str, Any]:
    options = fields.message("inference_options", "InferenceOptions")
    if options is None:
        raise UserError(f"{where}: InferenceRequest.inference_options is missing")
    params: dict[str, Any] = {}
    for name in ("init_activation", "pad_value", "move_threshold", "segment_threshold"):
        params[name] = options.number(name)
        if params[name] is None:
            raise UserError(f"{where}: InferenceOptions.{name} is missing; give a probability between 0 and 1")
    consistency = options.one("consistency_threshold")
    if consistency is not None and consistency.value != 0:
        raise options.error(consistency, "is not supported; leave it out")
    params["disco_seed_threshold"] = options.number("disco_seed_threshold") or 0.0
    params["min_segment_size"] = max(1, options.integer("min_segment_size") or 0)
    params["min_boundary_dist_xyz"] = _vector(options, "min_boundary_dist")
    options.finish()
    return params


def _vector(fields: Fields, name: str) -> list[int]:
    vector = fields.message(name, name)
    if vector is None:
        return [0, 0, 0]
    values = [vector.integer(axis) or 0 for axis in "xyz"]
    vector.finish()
    return values


def _seeds(fields: Fields, request: SegmentRequest) -> None:
    policy = fields.one("seed_policy")
    if policy is None or policy.value != "PolicyPeaks":
        if policy is None:
            request.notes.append("seed_policy is not given: PolicyPeaks is taken")
        else:
            raise fields.error(policy, f"is {policy.value!r}; only PolicyPeaks is supported, or seeds_xyz of the stage")
    arguments = fields.one("seed_policy_args")
    if arguments is not None and arguments.value not in ("", "{}"):
        raise fields.error(arguments, "is not supported; PolicyPeaks has its defaults")


def _movement(fields: Fields) -> None:
    policy = fields.one("movement_policy_name")
    if policy is not None and str(policy.value).rpartition(".")[2] not in ("", "FaceMaxMovementPolicy"):
        raise fields.error(policy, f"is {policy.value!r}; only FaceMaxMovementPolicy is supported")
    arguments = fields.one("movement_policy_args")
    if arguments is not None and arguments.value not in ("", "{}"):
        raise fields.error(arguments, "is not supported; deltas are given in model_args")


def _bookkeeping(fields: Fields, request: SegmentRequest) -> None:
    if fields.text("segmentation_output_dir") is not None:
        request.notes.append("segmentation_output_dir is left out: results go to the store (--store)")
    interval = fields.number("checkpoint_interval")
    if interval is not None:
        request.params["checkpoint_s"] = max(0.0, interval)
    for name in ("batch_size", "concurrent_requests"):
        if (fields.integer(name) or 1) != 1:
            request.notes.append(f"{name} is left out: give ranks instead (-n)")
    alignment = fields.message("alignment_options", "AlignmentOptions")
    if alignment is not None:
        kind = alignment.one("type")
        if kind is not None and kind.value not in ("NO_ALIGNMENT", 1):
            raise alignment.error(kind, f"is {kind.value}; only NO_ALIGNMENT is supported (stage align comes before)")
        alignment.refuse("save_raw", "is not supported; leave it out")
        alignment.finish()


def _masks(fields: Fields, request: SegmentRequest) -> None:
    """Each channel's condition becomes a mask with a rule of its own: they add up, as in google/ffn."""
    uris: list[str] = []
    rules: list[dict[str, Any]] = []
    for name in ("masks", "seed_masks"):
        for config in fields.messages(name, "MaskConfig"):
            config.refuse("coordinate_expression", "is not supported; write it as a mask volume")
            volume, image = config.message("volume", "VolumeMaskOptions"), config.message("image", "ImageMaskOptions")
            invert = bool(config.flag("invert"))
            config.finish()
            where = config.where
            if volume is not None:
                source = volume.message("mask", "DecoratedVolume")
                if source is None:
                    raise UserError(f"{where}: a MaskConfig has a volume without mask")
                uri, options = _volume(source, where), volume
            elif image is not None:
                uri, options = request.inputs["image"][0], image
            else:
                raise UserError(f"{where}: a MaskConfig has neither volume nor image")
            channels = options.messages("channels", "MaskChannelConfig")
            options.finish()
            if not channels or (invert and len(channels) > 1):
                raise UserError(
                    f"{where}: a MaskConfig of {name} has {len(channels)} channels{' and invert' if invert else ''}; "
                    "write a MaskConfig with one channel for each"
                )
            for channel in channels:
                uris.append(uri)
                rules.append({**_rule(channel, invert), "seeds_only": name == "seed_masks"})
    if uris:
        request.inputs["mask"], request.params["mask_rules"] = uris, rules
    if any(not rule["seeds_only"] for rule in rules):
        request.notes.append(
            "masks: masked voxels belong to no segment here; google/ffn only keeps the field of view's centre off them"
        )


def _rule(channel: Fields, inverted: bool) -> dict[str, Any]:
    number = channel.one("channel")
    if number is not None and number.value != 0:
        raise channel.error(number, f"is {number.value}; volumes here have one channel, 0")
    values = channel.integers("values")
    low, high = channel.number("min_value"), channel.number("max_value")
    invert = bool(channel.flag("invert")) ^ inverted
    channel.finish()
    if values:
        return {"values": values, "invert": invert}
    return {"minimum": low or 0.0, "maximum": high or 0.0, "invert": invert}


def _json(fields: Fields, name: str) -> dict[str, Any]:
    given = fields.one(name)
    if given is None or given.value == "":
        return {}
    try:
        value = json.loads(given.value)
    except (ValueError, TypeError) as error:
        raise fields.error(given, f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise fields.error(given, "must be a JSON object { }")
    return value

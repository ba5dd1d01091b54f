"""InferenceRequest files of google/ffn: read as they are meant, or refused by field and line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from happyneurons.cli.main import main
from happyneurons.errors import UserError
from happyneurons.ffn.request import read_bounding_box, read_request, set_box
from happyneurons.ffn.textproto import Field, Name, parse
from happyneurons.jobs.stage import parse_params
from happyneurons.stages.segment.stage import Segment, SegmentParams

# configs/inference_training_sample2.pbtxt of google/ffn (Apache-2.0) with its settings, its paths shortened.
REQUEST = """
image {
  hdf5: "data/grayscale_maps.h5:raw"
}
image_mean: 128
image_stddev: 33
checkpoint_interval: 1800
seed_policy: "PolicyPeaks"
model_checkpoint_path: "models/fib25/model.ckpt-27465036"
model_name: "convstack_3d.ConvStack3DFFNModel"
model_args: "{\\"depth\\": 12, \\"fov_size\\": [33, 33, 17], \\"deltas\\": [8, 8, 4]}"
segmentation_output_dir: "results/fib25/training2"
inference_options {
  init_activation: 0.95
  pad_value: 0.05
  move_threshold: 0.9
  min_boundary_dist { x: 1 y: 2 z: 3}
  segment_threshold: 0.6
  min_segment_size: 1000
}
"""


def params_of(request: str) -> SegmentParams:
    params = parse_params(Segment, read_request(request).params)
    assert isinstance(params, SegmentParams)
    return params


def test_a_request_becomes_a_segment_job_that_does_what_google_ffn_does() -> None:
    request = read_request(REQUEST)
    here = Path.cwd()
    assert request.inputs == {
        "image": [f"h5://{here}/data/grayscale_maps.h5?raw"],
        "model": [f"ckpt://{here}/models/fib25/model.ckpt-27465036"],
    }
    params = params_of(REQUEST)
    assert params.overrides() == {
        "fov_zyx": (17, 33, 33), "deltas_zyx": (4, 8, 8), "image_mean": 128.0, "image_stddev": 33.0,
    }  # fmt: skip
    assert params.depth == 12
    assert params.checkpoint_s == 1800
    options = params.inference_options()
    assert options.min_boundary_dist_zyx == (3, 2, 1)
    assert (options.init_activation, options.pad_value, options.move_threshold) == (0.95, 0.05, 0.9)
    assert (options.segment_threshold, options.min_segment_size) == (0.6, 1000)
    assert options.disco_seed_threshold == 0  # not given is 0 in protobuf, which switches it on
    assert options.skip_explored_fraction == 0
    assert params.outside_grey is None
    assert [note.split()[0] for note in request.notes] == ["segmentation_output_dir"]


def test_what_is_not_given_has_protobufs_default() -> None:
    lean = REQUEST.replace("min_boundary_dist { x: 1 y: 2 z: 3}", "min_boundary_dist { y: 2 }")
    lean = lean.replace("  min_segment_size: 1000\n", "").replace('\\"depth\\": 12, ', "")
    params = params_of(lean)
    assert params.min_boundary_dist_xyz == (0, 2, 0)
    assert params.min_segment_size == 1
    assert params.depth == 9  # of ConvStack3DFFNModel


def test_masks_and_an_initial_segmentation() -> None:
    request = read_request(
        REQUEST
        + """
        masks { volume { mask { hdf5: "tissue.h5:classes" }
                         channels { channel: 0 values: [1, 2] values: 3 invert: true } } }
        masks { image { channels { min_value: 0 max_value: 5.5 } } invert: true }
        seed_masks < volume < mask < volinfo: "precomputed:///data/soma" > channels < min_value: 1 max_value: 255 > > >
        init_segmentation { hdf5: "cells.h5:ids" }
        """
    )
    here = Path.cwd()
    assert request.inputs["mask"] == [
        f"h5://{here}/tissue.h5?classes", f"h5://{here}/data/grayscale_maps.h5?raw", "file:///data/soma",
    ]  # fmt: skip
    assert request.inputs["initial_segmentation"] == [f"h5://{here}/cells.h5?ids"]
    tissue, dark, soma = SegmentParams.model_validate(request.params).mask_rules
    assert (tissue.values, tissue.invert, tissue.seeds_only) == ((1, 2, 3), True, False)
    assert (dark.minimum, dark.maximum, dark.invert, dark.seeds_only) == (0, 5.5, True, False)
    assert (soma.minimum, soma.maximum, soma.seeds_only) == (1, 255, True)
    assert any(note.startswith("masks:") for note in request.notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('seed_policy: "PolicyPeaks"', 'seed_policy: "PolicyGrid3d"', r"line 8: .*seed_policy is 'PolicyGrid3d'; only"),
        ("image_mean: 128", "image_maen: 128", r"line 5: InferenceRequest.image_maen is not a field"),
        ("image_mean: 128", "image_mean: '128'", r"line 5: InferenceRequest.image_mean must be a number"),
        ("image_stddev: 33", "image_stddev: 33 image_stddev: 34", r"line 6: .*image_stddev is given twice"),
        ("image_stddev: 33", "", r"image_stddev is missing"),
        (
            "image_stddev: 33",
            'image_stddev: 33\nreference_histogram: "h"',
            r"line 7: .*reference_histogram is not supp",
        ),
        ("image_stddev: 33", "image_stddev: 33 shift_mask { }", r"line 6: .*shift_mask is not supported"),
        ("image_stddev: 33", "image_stddev: 33 self_prediction { }", r"line 6: .*self_prediction is not supported"),
        ("image_stddev: 33", 'image_stddev: 33 movement_policy_name: "a.Walk"', r"only FaceMaxMovementPolicy"),
        ("image_stddev: 33", "image_stddev: 33 alignment_options { type: WARP }", r"AlignmentOptions.type is WARP"),
        ('hdf5: "data/grayscale_maps.h5:raw"', 'hdf5: "data.h5"', r"line 3: .*write FILE:DATASET"),
        ('hdf5: "data/grayscale_maps.h5:raw"', 'volinfo: "v"', r"line 3: .*--image URI"),
        ('hdf5: "data/grayscale_maps.h5:raw"', 'hdf5: "a:b" decorator_specs: "[]"', r"decorator_specs is not supp"),
        ("convstack_3d.ConvStack3DFFNModel", "unet.UNet", r"line 10: .*only convstack_3d.ConvStack3DFFNModel"),
        ('\\"depth\\": 12', '\\"width\\": 12', r"model_args: width not supported"),
        ('\\"fov_size\\": [33, 33, 17]', '\\"fov\\": 1', r"model_args needs fov_size"),
        ("pad_value: 0.05", "", r"InferenceOptions.pad_value is missing"),
        ("pad_value: 0.05", "pad_value: 0.05 consistency_threshold: 0.1", r"line 15: .*consistency_threshold is not"),
        ("min_segment_size: 1000\n}", "min_segment_size: 1000\n", r"line 21: a field's name or '}' was expected"),
        ("pad_value: 0.05", "pad_value = 0.05", r"line 15: '= 0.05' is not protobuf text format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_field_and_line(old: str, new: str, message: str) -> None:
    assert old in REQUEST
    with pytest.raises(UserError, match=message):
        read_request(REQUEST.replace(old, new))


@pytest.mark.parametrize(
    "mask",
    [
        'masks { coordinate_expression { expression: "x > 3" } }',
        'masks { volume { mask { hdf5: "a:b" } channels { channel: 1 } } }',
        'masks { volume { mask { hdf5: "a:b" } channels { } channels { } } invert: true }',
        'masks { volume { mask { hdf5: "a:b" } } }',
        "masks { }",
        "masks: 3",
    ],
)
def test_masks_that_cannot_be_done_are_refused(mask: str) -> None:
    with pytest.raises(UserError, match=r"Mask|masks"):
        read_request(REQUEST + mask)


def test_bounding_boxes() -> None:
    box = read_bounding_box("start { x: 1 y:2 z:3 } size < x:10, y:20; z:30 >")
    assert box == ([1, 2, 3], [11, 22, 33])
    request = read_request(REQUEST)
    set_box(request, box)
    params = SegmentParams.model_validate(request.params)
    assert (params.subvolume_size_xyz, params.overlap_xyz) == ((10, 20, 30), (0, 0, 0))  # in one piece
    set_box(request, box, (8, 8, 8), (2, 2, 2))
    params = SegmentParams.model_validate(request.params)
    assert params.bounds_xyz == ((1, 2, 3), (11, 22, 33))
    assert (params.subvolume_size_xyz, params.overlap_xyz) == ((8, 8, 8), (2, 2, 2))
    with pytest.raises(UserError, match="sizes above 0"):
        read_bounding_box("start { x: 1 }")


def test_text_format_as_google_writes_it() -> None:
    """The reader against protobuf's own writer."""
    from google.protobuf import struct_pb2, text_format

    strange = "quote \" ' back\\slash\ttab\nline é \x01 end"
    message = struct_pb2.Value(list_value={"values": [{"string_value": strange}, {"number_value": -1.5e-7}]})
    for text in (text_format.MessageToString(message), text_format.MessageToString(message, as_one_line=True)):
        (field,) = parse(text, "test")
        values = [item.value for item in field.value]
        assert [v[0].value for v in values] == [strange, -1.5e-7]
    assert parse("a: 'x' \"y\" # comment\nb: [1, 0x10, -3] c: TRUE d: 1f", "test") == [
        Field("a", 1, "xy"), Field("b", 2, 1), Field("b", 2, 16), Field("b", 2, -3),
        Field("c", 2, Name("TRUE")), Field("d", 2, 1.0),
    ]  # fmt: skip


def test_the_command_takes_google_ffns_flags_and_writes_a_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "request.pbtxt"
    file.write_text(REQUEST)
    box = "start { x:0 y:0 z:0 } size { x:250 y:250 z:250 }"
    for given in (str(file), REQUEST):
        arguments = ["run-inference", f"--inference_request={given}", "--bounding_box", box]
        result = CliRunner().invoke(main, [*arguments, "--pipeline", str(tmp_path / "pipeline.yaml")])
        assert result.exit_code == 0, result.output
        assert "segmentation_output_dir is left out" in result.output
        jobs = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())["jobs"]
        assert jobs["segment"]["params"]["bounds_xyz"] == [[0, 0, 0], [250, 250, 250]]
        assert jobs["segment"]["params"]["skip_explored_fraction"] == 0
        parse_params(Segment, jobs["segment"]["params"])
    wrong = CliRunner().invoke(main, ["run-inference", "--inference-request", str(file)])
    assert (wrong.exit_code, "--bounding-box" in wrong.output) == (2, True)
    (tmp_path / "request.pbtxt").write_text(REQUEST.replace("PolicyPeaks", "PolicyMax"))
    wrong = CliRunner().invoke(main, ["run-inference", "--inference-request", str(file), "--bounding-box", box])
    assert wrong.exit_code == 2
    assert f"{file}, line 8: InferenceRequest.seed_policy is 'PolicyMax'" in wrong.output.replace("\n", " ")

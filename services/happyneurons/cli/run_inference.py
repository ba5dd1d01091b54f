"""`hpn run-inference`: what google/ffn's run_inference.py takes, done by the stages segment and reconcile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from happyneurons.cli.options import json_option, parse_assignments, print_json, store_option, store_uri
from happyneurons.errors import UserError
from happyneurons.store.triples import Triple


class _Triple(click.ParamType):
    name = "X,Y,Z"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Triple:
        if isinstance(value, tuple):
            return value
        try:
            x, y, z = (int(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not three whole numbers X,Y,Z", param, ctx)
        return (x, y, z)


@click.command(name="run-inference")
@click.option(
    "--inference-request", "--inference_request", "request_text", required=True, metavar="FILE|TEXT",
    help="InferenceRequest in protobuf text format, or a file of it.",
)  # fmt: skip
@click.option(
    "--bounding-box", "--bounding_box", "box_text", metavar="TEXT",
    help="BoundingBox in text format: start { x:0 y:0 z:0 } size { x:250 y:250 z:250 } [default: the whole image].",
)  # fmt: skip
@click.option(
    "--subvolume-size", type=_Triple(), help="Segment in overlapping subvolumes [default: the box in one piece]."
)
@click.option("--overlap", type=_Triple(), help="Voxels that neighbouring subvolumes share [default: 48,48,48].")
@click.option(
    "--fast", is_flag=True, help="Leave out network calls that hardly change anything (not google/ffn's result)."
)
@click.option(
    "--image", metavar="URI", help="Image volume instead of the request's (precomputed or h5://FILE?DATASET)."
)
@click.option("--param", "params", metavar="KEY=VALUE", multiple=True, help="Another parameter of the stage segment.")
@click.option("--pipeline", type=click.Path(path_type=Path), help="Write a pipeline for `hpn run` instead of running.")
@click.option("-n", "ranks", default=1, show_default=True, metavar="RANKS", help="MPI ranks that work.")
@click.option("--threads", default=1, show_default=True, help="Threads a rank may use.")
@store_option
@json_option
def run_inference(
    request_text: str,
    box_text: str | None,
    subvolume_size: Triple | None,
    overlap: Triple | None,
    fast: bool,
    image: str | None,
    params: tuple[str, ...],
    pipeline: Path | None,
    ranks: int,
    threads: int,
    store: str | None,
    as_json: bool,
) -> None:
    """Segment as google/ffn's run_inference.py does, and write one precomputed segmentation.

    What the request asks for and cannot be done is refused with its line. Prints results as JSON.
    """
    from happyneurons.cli.stage import run_here

    inputs, segment_params, notes = _job(request_text, box_text, subvolume_size, overlap, fast, image, params)
    if not as_json:
        for note in notes:
            click.echo(f"note: {note}", err=True)
    if pipeline is not None:
        _write(pipeline, inputs, segment_params, ranks, threads)
        print_json({"pipeline": str(pipeline), "notes": notes}) if as_json else click.echo(
            f"written; start it with: hpn run {pipeline}"
        )
        return
    root = store_uri(store)
    segment = run_here("segment", inputs, segment_params, root, ranks=ranks, threads=threads, quiet=as_json)
    boxes = {"subvolumes": [segment["outputs"]["subvolumes"]]}
    reconcile = run_here("reconcile", boxes, {}, root, ranks=ranks, threads=threads, quiet=as_json)
    print_json({"segment": segment, "reconcile": reconcile, "notes": notes})


def _job(
    request_text: str,
    box_text: str | None,
    subvolume_size: Triple | None,
    overlap: Triple | None,
    fast: bool,
    image: str | None,
    params: tuple[str, ...],
) -> tuple[dict[str, list[str]], dict[str, Any], list[str]]:
    """Inputs and parameters of segment, checked against the stage; notes for people."""
    from happyneurons.ffn.request import read_bounding_box, read_request, set_box
    from happyneurons.jobs.stage import parse_params
    from happyneurons.stages import load_stage

    text, where = _text(request_text)
    request = read_request(text, where=where, image=image)
    if overlap is not None and subvolume_size is None:
        raise UserError("--overlap needs --subvolume-size")
    if box_text is None and subvolume_size is None:
        raise UserError("give --bounding-box, or --subvolume-size to segment the whole image in subvolumes")
    box = None if box_text is None else read_bounding_box(box_text, where="--bounding-box")
    set_box(request, box, subvolume_size, overlap)
    if fast:
        del request.params["skip_explored_fraction"]
    merged = {**request.params, **parse_assignments(params, "--param")}
    parse_params(load_stage("segment"), merged)
    return request.inputs, merged, request.notes


def _text(given: str) -> tuple[str, str]:
    """(text, what to call it) of an option that takes a file or its content."""
    if "{" in given or "\n" in given:
        return given, "--inference-request"
    path = Path(given).expanduser()
    try:
        return path.read_text(), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--inference-request {given}: cannot be read ({getattr(error, 'strerror', error)})") from None


def _write(pipeline: Path, inputs: dict[str, list[str]], params: dict[str, Any], ranks: int, threads: int) -> None:
    import yaml

    document = {
        "name": "ffn-inference",
        "defaults": {"resources": {"ranks": ranks, "threads_per_rank": threads}},
        "jobs": {
            "segment": {
                "inputs": {name: uris if name == "mask" else uris[0] for name, uris in inputs.items()},
                "params": params,
            },
            "reconcile": {"inputs": {"subvolumes": "segment.subvolumes"}},
        },
    }
    pipeline.write_text(yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120))

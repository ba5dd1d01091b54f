"""`hpn evaluate`: a segmentation against ground truth, without an orchestrator."""

from __future__ import annotations

import click

from happyneurons.cli.options import json_option, parse_assignments, print_json, store_option, store_uri
from happyneurons.cli.stage import run_here
from happyneurons.errors import UserError


@click.command()
@click.option("--segmentation", metavar="URI", help="What to score (an artifact, or a volume).")
@click.option("--truth", metavar="URI", help="Ground truth in the same coordinates.")
@click.option("--skeletons", metavar="URI", help="True skeletons in nm: precomputed, or swc://FOLDER.")
@click.option("--mask", metavar="URI", help="A mask, or its objects, to score by Dice and IoU.")
@click.option("--mask-truth", metavar="URI", help="What is true of it, at any resolution.")
@click.option("--erl", is_flag=True, help="Make those skeletons from the truth first (stage skeletonize).")
@click.option("--param", "params", metavar="KEY=VALUE", multiple=True, help="A parameter of the stage evaluate.")
@click.option("-n", "ranks", default=1, show_default=True, metavar="RANKS", help="MPI ranks that work.")
@store_option
@json_option
def evaluate(
    segmentation: str | None,
    truth: str | None,
    skeletons: str | None,
    mask: str | None,
    mask_truth: str | None,
    erl: bool,
    params: tuple[str, ...],
    ranks: int,
    store: str | None,
    as_json: bool,
) -> None:
    """Score a segmentation against ground truth (VOI, adapted Rand error, coverage, run length), or a mask.

    The worst splits and mergers: `hpn view REPORT --worst 10`.
    """
    if segmentation is None and mask is None:
        raise UserError("nothing to score: give --segmentation, or --mask")
    if (mask is None) != (mask_truth is None):
        raise UserError("give --mask and --mask-truth together")
    if segmentation is not None and truth is None and skeletons is None:
        raise UserError("nothing to compare with: give --truth or --skeletons")
    if erl and (truth is None or skeletons is not None):
        raise UserError("--erl makes skeletons from --truth; leave it out if there are --skeletons")
    root = store_uri(store)
    if erl and truth is not None:
        traced = run_here("skeletonize", {"segmentation": [truth]}, {}, root, ranks=ranks, quiet=as_json)
        skeletons = traced["outputs"]["skeletons"]
    given = {"segmentation": segmentation, "truth": truth, "skeletons": skeletons}
    given |= {"mask": mask, "mask_truth": mask_truth}
    inputs = {name: [uri] for name, uri in given.items() if uri is not None}
    result = run_here(
        "evaluate", inputs, parse_assignments(params, "--param"), root, ranks=ranks, quiet=as_json
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    for metric, value in sorted(result["metrics"].items()):
        click.echo(f"{metric:<32} {value:.6g}")
    click.echo(f"report: {result['outputs']['report']}")

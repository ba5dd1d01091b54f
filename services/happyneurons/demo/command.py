"""The command `hpn demo`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from happyneurons.demo.prepare import MODEL, DemoSettings, prepare

PIPELINE = Path(__file__).with_name("pipeline.yaml")


@click.command()
@click.option("--output", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--size", default="256,256,64", show_default=True, metavar="X,Y,Z", help="Voxels of the phantom.")
@click.option("--seed", default=7, show_default=True, help="Another seed is another tissue.")
@click.option("--anisotropy", default=1.0, show_default=True, help="Section spacing by pixel size.")
@click.option("--ranks", default=2, show_default=True, help="MPI ranks of each job.")
@click.option("--sites", type=click.Path(path_type=Path), help="File of sites [default: this machine].")
@click.option("--site", default="", help="Site that does the work [default: local, or the first of the file].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, nothing else.")
def demo(
    output: Path, size: str, seed: int, anisotropy: float, ranks: int, sites: Path | None, site: str, as_json: bool
) -> None:
    """From raw tiles to neurons, on a phantom with known truth.

    Makes a phantom of neurites, photographs it with a simulated microscope, starts an orchestrator,
    submits the pipeline over gRPC and scores the result against the truth.
    """
    from happyneurons.cli.display import follow
    from happyneurons.client import Client
    from happyneurons.demo.report import copy_pictures, make_report, summary, write_report
    from happyneurons.errors import JobFailedError
    from happyneurons.orchestrator.server import OrchestratorServer
    from happyneurons.orchestrator.sites import load_sites
    from happyneurons.rpc.access import PLAIN
    from happyneurons.store.documents import Store

    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    began = time.monotonic()
    settings = DemoSettings(_size(size), seed, anisotropy, ranks)
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    say(f"→ a phantom of {size.replace(',', '×')} voxels, photographed as tiles in {output / 'acquisition'}")
    prepared = prepare(output, settings)
    store = Store(str(output / "store"))
    server = OrchestratorServer(store, sites=load_sites(sites), default_site=site)
    server.start()
    try:
        with Client(server.address, PLAIN) as client:
            say(f"→ an orchestrator at {server.address}; the pipeline goes to it over gRPC")
            run = client.submit(
                PIPELINE, {"acquisition": str(prepared.acquisition), "model": str(MODEL), "ranks": settings.ranks}
            )
            follow(run, quiet=as_json)
            run.refresh()
    finally:
        server.close()
    if run.state != "succeeded":
        raise JobFailedError(f"run {run.id} {run.state}: {run.message}; see `hpn status --store {store.uri} {run.id}`")
    facts = {"objects": prepared.objects, "wall_s": {"phantom_and_acquisition": prepared.wall_s}}
    report = make_report(run, store.uri, facts, time.monotonic() - began)
    report["pictures"] = [str(p) for p in copy_pictures(run, output / "pictures")]
    write_report(report, output / "report.json")
    if as_json:
        click.echo(json.dumps(report))
        return
    say("")
    for line in summary(report):
        say(line)
    say(f"\nreport        {output / 'report.json'}\npictures      {output / 'pictures'}")
    say("\nNext:")
    say(f"  hpn view --store {output / 'store'} {run.id}      # the result in Neuroglancer")
    say(f"  hpn status --store {output / 'store'}             # the runs; a second `hpn demo` computes nothing")
    say("  hpn stage list                                    # what pipelines are made of")


def _size(text: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(v) for v in text.split(","))
    except ValueError:
        raise click.BadParameter("write three numbers: X,Y,Z", param_hint="--size") from None
    if min(x, y) < 128 or z < 16:
        raise click.BadParameter("at least 128,128,16: smaller sections have nothing to align", param_hint="--size")
    return (x, y, z)

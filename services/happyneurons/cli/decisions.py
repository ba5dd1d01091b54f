"""Commands that change a run: somebody must be there to act on them."""

from __future__ import annotations

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json
from happyneurons.cli.session import deciding
from happyneurons.client.plain import plain
from happyneurons.client.runs import Run


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("gate")
@click.option("-m", "--message", default="", help="What is to be said about it; kept with the run.")
@orchestrator_option
@json_option
def approve(run_id: str, gate: str, message: str, orchestrator: str | None, as_json: bool) -> None:
    """Let a run pass a gate."""
    with deciding(orchestrator, "approve") as client:
        _show(client.approve(run_id, gate, message), f"gate {gate} approved", as_json)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("gate")
@click.option("-m", "--message", default="", help="What is to be said about it; kept with the run.")
@orchestrator_option
@json_option
def reject(run_id: str, gate: str, message: str, orchestrator: str | None, as_json: bool) -> None:
    """Do not let a run pass a gate: what follows from it is skipped."""
    with deciding(orchestrator, "reject") as client:
        _show(client.reject(run_id, gate, message), f"gate {gate} rejected", as_json)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("-m", "--message", default="", help="Why; kept with the run.")
@orchestrator_option
@json_option
def cancel(run_id: str, message: str, orchestrator: str | None, as_json: bool) -> None:
    """Stop a run and its jobs. What is finished stays, and `hpn retry` goes on."""
    with deciding(orchestrator, "cancel") as client:
        _show(client.cancel(run_id, message), "asked to stop", as_json)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("jobs", nargs=-1, metavar="[JOB…]")
@click.option("--retry-quarantined", is_flag=True, help="Also try again the tasks that were given up.")
@orchestrator_option
@json_option
def retry(
    run_id: str, jobs: tuple[str, ...], retry_quarantined: bool, orchestrator: str | None, as_json: bool
) -> None:  # fmt: skip
    """Attempt again what failed or was cancelled, or only some JOBs with what follows from them."""
    with deciding(orchestrator, "retry") as client:
        _show(client.retry(run_id, jobs, retry_quarantined=retry_quarantined), "goes on", as_json)


def _show(run: Run, what: str, as_json: bool) -> None:
    if as_json:
        print_json(plain(run.proto))
    else:
        click.echo(f"run {run.id}: {what} ({run.state}{f', {run.message}' if run.message else ''})")

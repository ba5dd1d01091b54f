"""Commands that look at runs and change nothing."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from happyneurons.cli.display import RunDisplay, human_s, seconds
from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.cli.run import exit_code
from happyneurons.cli.session import reading
from happyneurons.client.plain import plain, short
from happyneurons.v1 import pipelines_pb2

BATCH_JOB = re.compile(r"(.+)\[\d{4,}\]\Z")
COLOURS = {"succeeded": "green", "failed": "red", "running": "cyan", "waiting": "yellow", "cancelled": "yellow"}


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--limit", default=20, show_default=True, help="Runs to list.")
@click.option("--state", "states", multiple=True, help="Only runs in this state (may be repeated).")
@orchestrator_option
@store_option
@json_option
def status(
    run_id: str | None, limit: int, states: tuple[str, ...], orchestrator: str | None, store: str | None, as_json: bool
) -> None:
    """Show the latest runs, or the jobs and gates of one."""
    with reading(orchestrator, store) as client:
        if run_id is None:
            runs = list(client.runs(states, limit))
            print_json([plain(r) for r in runs]) if as_json else _print_runs(runs)
            return
        found = client.run(run_id)
        print_json(plain(found.proto)) if as_json else _print_run(found.proto)


@click.command()
@click.argument("run_id", metavar="RUN")
@orchestrator_option
@store_option
@json_option
@click.pass_context
def watch(ctx: click.Context, run_id: str, orchestrator: str | None, store: str | None, as_json: bool) -> None:
    """Follow a run until it ends. With --json: an event a line. Exits as `hpn run` does."""
    import json

    with reading(orchestrator, store) as client:
        with RunDisplay(quiet=as_json) as display:
            for event in client.watch(run_id):
                display.event(event)
                if as_json:
                    click.echo(json.dumps(plain(event), ensure_ascii=False))
        found = client.run(run_id)
    if not as_json:
        click.echo(f"run {run_id} {found.state}{': ' if found.message else ''}{found.message}")
    ctx.exit(exit_code(found))


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt ends.")
@click.option("--attempt", default=0, help="Number of an attempt [default: the latest].")
@orchestrator_option
@store_option
@json_option
def logs(
    run_id: str, job: str, follow: bool, attempt: int, orchestrator: str | None, store: str | None, as_json: bool
) -> None:
    """Show what the ranks of a job logged. With --json: a chunk a line."""
    import json

    with reading(orchestrator, store) as client, contextlib.suppress(BrokenPipeError):
        for chunk in client.logs(run_id, job, attempt=attempt, follow=follow):
            click.echo(json.dumps(plain(chunk), ensure_ascii=False) if as_json else chunk.text, nl=as_json)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("job")
@orchestrator_option
@store_option
@json_option
def explain(run_id: str, job: str, orchestrator: str | None, store: str | None, as_json: bool) -> None:
    """Say why a job was computed or reused, or what it waits for."""
    with reading(orchestrator, store) as client:
        found = client.explain(run_id, job)
    if as_json:
        print_json(plain(found))
        return
    click.echo(f"{job}: {short(found, 'state')}{f' (key {found.key})' if found.key else ''}")
    for reason in found.reasons:
        click.echo(f"  {reason}")
    if found.site_explanation:
        click.echo(f"  the site says: {found.site_explanation}")
    if found.differences:
        click.echo(f"  compared with {found.compared_with_key}:")
        for line in found.differences:
            click.echo(f"    {line}")


def _print_runs(runs: Iterable[pipelines_pb2.Run]) -> None:
    table = _table("run", "pipeline", "state", "submitted", "took", "")
    for run in runs:
        state = short(run, "state")
        took = ""
        if run.HasField("end_time"):
            took = human_s((run.end_time.ToMilliseconds() - run.submit_time.ToMilliseconds()) / 1000)
        submitted = f"{run.submit_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
        table.add_row(run.id, escape(run.name), _coloured(state), submitted, took, escape(run.message))
    if table.row_count:
        _console().print(table)
    else:
        click.echo("no runs yet")


def _print_run(run: pipelines_pb2.Run) -> None:
    state = short(run, "state")
    console = _console()
    console.print(
        f"{run.id}  {escape(run.name)}  {_coloured(state)}  {escape(run.message)}", soft_wrap=True
    )  # fmt: skip
    if run.HasField("acquisition"):
        console.print(escape(_acquisition(run.acquisition)), soft_wrap=True)
    table = _table("job", "state", "site", "took", "")
    alike = Counter(kind for job in run.jobs if (kind := _kind(run, job)))
    for job in run.jobs:
        kind = _kind(run, job)
        if kind is None or alike[kind] == 1:
            took, details = seconds(job.job), escape(_details(job))
            table.add_row(escape(job.name), _coloured(_job_state(job)), job.site, took, details)
        elif count := alike.pop(kind, 0):  # one line for all of them
            table.add_row(escape(f"{kind[0]}[…]"), _coloured(kind[1]), job.site, "", f"{count} batches")
    for gate in run.gates:
        text = gate.question or gate.condition
        table.add_row(f"gate {escape(gate.name)}", short(gate, "state"), "", "", escape(text))
    console.print(table)


def _kind(run: pipelines_pb2.Run, job: pipelines_pb2.RunJob) -> tuple[str, str] | None:
    """(name without the batch, state) of a batch's job that there is nothing to say of; None for others."""
    match = BATCH_JOB.match(job.name) if run.HasField("acquisition") else None
    state = _job_state(job)
    return (match[1], state) if match and state in ("succeeded", "reused", "waiting", "queued") else None


def _acquisition(found: pipelines_pb2.AcquisitionStatus) -> str:
    """How far an open run is behind its microscope, in a line."""
    counts = {
        "through the jobs for each batch": found.sections_done, "in work": found.sections_in_work,
        "waiting for a batch": found.sections_waiting, "failed": found.sections_failed,
        "imaged again": found.sections_imaged_again,
    }  # fmt: skip
    parts = [f"{found.sections_reported} sections reported", *(f"{n} {what}" for what, n in counts.items() if n)]
    if found.sections_in_gaps:
        shown = [str(g.first_z) if g.first_z == g.last_z else f"{g.first_z}-{g.last_z}" for g in found.gaps[:10]]
        more = ", …" if len(found.gaps) > 10 else ""
        parts.append(f"{found.sections_in_gaps} not there between them ({', '.join(shown)}{more})")
    if found.HasField("lag"):
        parts.append(f"{human_s(found.lag.ToMilliseconds() / 1000)} behind")
    return f"{'; '.join(parts)}; {'the acquisition has ended' if found.ended else 'more may come'}"


def _job_state(job: pipelines_pb2.RunJob) -> str:
    return "reused" if job.job.reused else short(job.job, "state")


def _details(job: pipelines_pb2.RunJob) -> str:
    state = short(job.job, "state")
    if state in ("waiting", "queued"):
        return f"waits for {job.job.waiting_for}"
    if state == "failed":
        return job.job.failure.message
    if state == "running" and job.job.HasField("progress"):
        p = job.job.progress
        eta = f", {human_s(p.eta.ToMilliseconds() / 1000)} left" if p.HasField("eta") else ""
        return f"{p.round} {p.tasks_done}/{p.tasks_total}{eta}"
    return "  ".join(f"{name}={value:.4g}" for name, value in sorted(job.job.metrics.items()))


def _coloured(state: str) -> str:
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else state


def _console() -> Console:
    """Standard output; in a pipe, lines are as long as they are."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        # The last column, messages and figures, has no name; it alone may take more lines.
        table.add_column(column, overflow="fold", no_wrap=bool(column))
    return table

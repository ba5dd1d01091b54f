"""`hpn run`: carry out a pipeline, at an orchestrator or in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from happyneurons.cli.display import RunDisplay, follow, human_s
from happyneurons.cli.options import (
    json_option,
    orchestrator_address,
    orchestrator_option,
    print_json,
    split_assignments,
    store_option,
    store_uri,
)
from happyneurons.client.client import Client, pipeline_message
from happyneurons.client.plain import plain, short
from happyneurons.client.runs import Run
from happyneurons.errors import EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, EXIT_USAGE, UserError
from happyneurons.rpc.access import PLAIN
from happyneurons.v1 import pipelines_pb2

if TYPE_CHECKING:
    from happyneurons.orchestrator.server import OrchestratorServer

EXPLAINED_JOBS = 50
DRAIN_S = 35.0


@click.command()
@click.argument("pipeline", type=click.Path(path_type=Path), required=False)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="Value of a parameter of the pipeline.")
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run of the store instead of a new one.")
@orchestrator_option
@store_option
@click.option("--watch/--no-watch", default=True, help="Follow the run until it ends (default), or only submit it.")
@click.option("--request-id", default="", help="Repeating a submission with the same id finds the first run.")
@click.option("--site", default="", help="Site of jobs that name none.")
@click.option("--project", default="", envvar="HPN_PROJECT", help="Whose run it is [$HPN_PROJECT, or your only one].")
@click.option("--sites", type=click.Path(path_type=Path), help="File of sites, for an orchestrator in this process.")
@click.option("--cores", type=int, help="Cores that jobs may use together, here [default: all].")
@click.option("--memory-gb", type=float, help="Memory that jobs may use together, here, in GB [default: all].")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    pipeline: Path | None,
    settings: tuple[str, ...],
    resume: str | None,
    orchestrator: str | None,
    store: str | None,
    watch: bool,
    request_id: str,
    site: str,
    project: str,
    sites: Path | None,
    cores: int | None,
    memory_gb: float | None,
    as_json: bool,
) -> None:
    """Carry out the pipeline of a YAML file and show how it goes.

    Without --orchestrator one is started here, for --store. Finished jobs are reused, so running a
    pipeline again computes only what changed. Ctrl-C drains; run the same command again to go on.
    """
    if (pipeline is None) == (resume is None):
        raise click.UsageError("give a PIPELINE.yaml, or --resume RUN")
    spec = None if pipeline is None else _read(pipeline, settings)
    address = orchestrator_address(orchestrator, store)
    if address is None and not watch:
        raise UserError("--no-watch needs an orchestrator that stays: give --orchestrator HOST:PORT")
    if address is not None and (sites or cores or memory_gb or resume):
        raise UserError("--sites, --cores, --memory-gb and --resume are for an orchestrator in this process")
    display = RunDisplay(quiet=as_json)
    if address is not None:
        with Client(address) as client:
            assert spec is not None
            submitted = client.submit(spec, request_id=request_id, default_site=site, project=project)
            if not watch:
                print_json(plain(submitted.proto)) if as_json else click.echo(submitted.id)
                return
            ctx.exit(_finish(client, submitted, as_json, f" --orchestrator {address}"))

    from happyneurons.orchestrator.server import OrchestratorServer, local_sites
    from happyneurons.store.documents import Store

    server = OrchestratorServer(
        Store(store_uri(store)), sites=local_sites(sites, cores, memory_gb), default_site=site, resume=False
    )
    with server, Client(server.address, PLAIN) as client:
        if spec is not None:
            submitted = client.submit(spec, request_id=request_id, default_site=site, project=project)
        else:
            assert resume is not None
            server.orchestrator.adopt(resume)
            submitted = client.run(resume)
        display.say(f"run {submitted.id}, orchestrator at {server.address}, store {server.orchestrator.store.uri}")
        code = EXIT_TRY_AGAIN
        with _interruptible(server, submitted.id, display):
            code = _finish(client, submitted, as_json, f" --store {server.orchestrator.store.uri}")
    ctx.exit(code)


def _finish(client: Client, submitted: Run, as_json: bool, target: str) -> int:
    """Watch a run to its end and say how it went; returns the exit code. target: options for what to type next."""
    follow(submitted, quiet=as_json)
    submitted.refresh()
    why = _explanations(client, submitted)
    if as_json:
        print_json({**plain(submitted.proto), "explanations": {e.job_name: plain(e) for e in why}})
    else:
        for line in _summary(submitted, why, target):
            click.echo(line)
    return exit_code(submitted)


def exit_code(finished: Run) -> int:
    """0, or whose fault it was: 2 if the first job that failed had bad input, else 1."""
    if finished.state == "succeeded":
        return EXIT_OK
    for job in finished.proto.jobs:
        if short(job.job, "state") == "failed":
            return EXIT_USAGE if short(job.job.failure, "kind") == "user" else EXIT_FAILED
    return EXIT_FAILED


def _read(pipeline: Path, settings: tuple[str, ...]) -> pipelines_pb2.PipelineSpec:
    spec = pipeline_message(pipeline)
    for name, values in split_assignments(settings, "--set").items():
        spec.parameters[name] = values[-1]
    return spec


def _explanations(client: Client, finished: Run) -> list[pipelines_pb2.JobExplanation]:
    """Why jobs were computed. Asked for those only, and not for thousands."""
    names = [j.name for j in finished.proto.jobs if short(j.job, "state") == "succeeded" and not j.job.reused]
    return [client.explain(finished.id, name) for name in names[:EXPLAINED_JOBS]]


def _summary(finished: Run, why: list[pipelines_pb2.JobExplanation], target: str) -> Iterator[str]:
    proto = finished.proto
    states = [(short(j.job, "state"), j.job.reused) for j in proto.jobs]
    reused = sum(1 for state, was in states if state == "succeeded" and was)
    computed = sum(1 for state, was in states if state == "succeeded" and not was)
    for explanation in why:
        if explanation.differences:
            yield f"  {explanation.job_name} was computed because of {'; '.join(explanation.differences)}"
    took = human_s((proto.end_time.ToMilliseconds() - proto.submit_time.ToMilliseconds()) / 1000)
    if finished.state == "succeeded" and not computed:
        yield f"run {finished.id} succeeded in {took}: nothing was computed, every job's result was there"
    elif finished.state == "succeeded":
        yield f"run {finished.id} succeeded in {took}: {computed} jobs computed, {reused} reused"
    else:
        yield f"run {finished.id} {finished.state} after {took}: {finished.message}"
        for job in proto.jobs:
            if short(job.job, "state") == "failed" and job.job.failure.reproduce_command:
                yield f"  reproduce: {job.job.failure.reproduce_command}"
            if short(job.job, "state") == "failed" and job.job.key:
                yield f"  its log:   hpn logs {finished.id} {job.name}{target}"
        return
    yield f"  figures: hpn status {finished.id}{target}    look: hpn view {finished.id}{target}"


@contextlib.contextmanager
def _interruptible(server: OrchestratorServer, run_id: str, display: RunDisplay) -> Iterator[None]:
    """Ctrl-C stops the scheduler, drains the jobs at work, and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        orchestrator = server.orchestrator
        orchestrator.halt()
        display.say("draining: running tasks get to finish, everything done is kept (Ctrl-C again: leave at once)")
        with contextlib.suppress(KeyboardInterrupt):
            orchestrator.drain(DRAIN_S)
        display.say(f"go on: hpn run --resume {run_id} --store {orchestrator.store.uri}, or the same command again")

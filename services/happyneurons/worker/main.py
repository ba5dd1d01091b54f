"""`hpn-stage`: the one entry point of every stage image.

hpn-stage run JOB_URI      attempt a job (what mpiexec starts, on every rank)
hpn-stage serve            serve the StageService over gRPC
hpn-stage describe [NAME]  print stages as JSON
hpn-stage selftest         say what ranks find here: MPI, store, scratch
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import click

from happyneurons.errors import EXIT_FAILED, HappyError

DRAIN_HELP = "At the end ask attempts to stop, and wait so long until they have [default: they go on by themselves]."
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@click.group(help=(__doc__ or "").split("\n\n")[0])
def main() -> None:
    logging.basicConfig(level=os.environ.get("HPN_LOG_LEVEL", "WARNING"), format=LOG_FORMAT, stream=sys.stderr)
    # A stage's libraries warn about GPUs and CPU features that are not there.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@main.command()
@click.argument("uri", metavar="JOB_URI")
@click.option("--threads", default=1, show_default=True, help="Threads a rank may use.")
@click.option("--takeover", is_flag=True, help="The open attempt's process is known to be gone: do not wait for it.")
@click.option("--walltime-s", type=float, help="Drain before this many seconds are over.")
@click.option("--retry-quarantined", is_flag=True, help="Try again what earlier attempts gave up.")
@click.option("--task", metavar="ROUND/KEY", help="Do only this task, here, and show its error (changes no journal).")
def run(
    uri: str, threads: int, takeover: bool, walltime_s: float | None, retry_quarantined: bool, task: str | None
) -> None:
    """Attempt the job STORE/jobs/KEY on all MPI ranks.

    Exits with 0 (published), 1 (failed), 2 (bad input) or 75 (drained or interrupted: try again).
    """
    from happyneurons.worker.reproduce import run_single_task
    from happyneurons.worker.run import RunOptions, run_job_uri

    try:
        if task is not None:
            run_single_task(uri, task, threads)
            return
        options = RunOptions(
            threads=threads, takeover=takeover, walltime_s=walltime_s, retry_quarantined=retry_quarantined
        )
        sys.exit(run_job_uri(uri, options))
    except HappyError as error:
        click.echo(f"hpn-stage: {error}", err=True)
        sys.exit(error.exit_code)


@main.command()
@click.argument("name", required=False)
def describe(name: str | None) -> None:
    """Print a stage, or all of them, as JSON."""
    from happyneurons.jobs.describe import describe_stage
    from happyneurons.stages import load_stage, stage_names

    try:
        names = [name] if name else stage_names()
        documents = [describe_stage(load_stage(n)) for n in names]
        click.echo(json.dumps(documents[0] if name else documents, indent=2))
    except HappyError as error:
        click.echo(f"hpn-stage: {error}", err=True)
        sys.exit(error.exit_code)


@main.command()
@click.option("--store", "store_uri", metavar="URI", help="Try out this store as well.")
def selftest(store_uri: str | None) -> None:
    """Say what MPI ranks find here, as JSON (start it as `run` is started). Exits with 1 if something is wrong."""
    from happyneurons.worker.selftest import selftest as test

    document = test(store_uri)
    if document is not None:
        click.echo(json.dumps(document))
        sys.exit(EXIT_FAILED if document["problems"] else 0)


@main.command()
@click.option("--store", "store_uri", required=True, metavar="URI", help="Root of the store.")
@click.option("--address", default="127.0.0.1:50051", show_default=True, help="host:port to listen on; port 0: any.")
@click.option("--cores", type=click.IntRange(min=1), help="Cores that jobs may use together [default: all].")
@click.option("--memory-gb", type=float, help="Memory that jobs may use together [default: all].")
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there; port 0: any.")
@click.option(
    "--max-queued", type=click.IntRange(min=0), help="Jobs that may wait for cores; more are refused [no limit]."
)
@click.option("--drain-s", type=click.FloatRange(min=0), help=DRAIN_HELP)
@click.option("--port-file", type=click.Path(path_type=Path), help="Write the bound host:port here once it serves.")
@click.option("--security", type=click.Path(path_type=Path), help="Who may do what: docs/security.md [everybody].")
def serve(
    store_uri: str,
    address: str,
    cores: int | None,
    memory_gb: float | None,
    metrics: str | None,
    max_queued: int | None,
    drain_s: float | None,
    port_file: Path | None,
    security: Path | None,
) -> None:
    """Serve the StageService until SIGTERM."""
    from happyneurons.worker.server import serve_stage

    try:
        serve_stage(
            store_uri, address, cores=cores, memory_gb=memory_gb, max_queued=max_queued, drain_s=drain_s,
            metrics_address=metrics, port_file=port_file, security_file=security,
        )  # fmt: skip
    except HappyError as error:
        click.echo(f"hpn-stage: {error}", err=True)
        sys.exit(error.exit_code or EXIT_FAILED)


if __name__ == "__main__":
    main(prog_name="hpn-stage")

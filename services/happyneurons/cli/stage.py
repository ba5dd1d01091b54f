"""`hpn stage list|describe|run`: stages without an orchestrator."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from happyneurons.cli.options import (
    json_option,
    parse_assignments,
    print_json,
    split_assignments,
    store_option,
    store_uri,
)
from happyneurons.errors import EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, EXIT_USAGE, UserError

LOOK_S = 0.5


@click.group()
def stage() -> None:
    """List, describe and run single stages, here and without an orchestrator."""


@stage.command(name="list")
@json_option
def list_stages(as_json: bool) -> None:
    """The stages of this installation."""
    from happyneurons.stages import load_stage, stage_names

    classes = [load_stage(name) for name in stage_names()]
    if as_json:
        print_json([{"name": c.name, "version": c.version, "summary": c.summary} for c in classes])
        return
    width = max(len(c.name) for c in classes)
    for found in classes:
        click.echo(f"{found.name:<{width}}  {found.summary}")


@stage.command()
@click.argument("name")
@json_option
def describe(name: str, as_json: bool) -> None:
    """Inputs, outputs and parameters of a stage."""
    from happyneurons.jobs.describe import describe_stage
    from happyneurons.stages import load_stage

    document = describe_stage(load_stage(name))
    if as_json:
        print_json(document)
        return
    click.echo(f"{document['name']} (version {document['version']}): {document['summary']}")
    for title, specs in (("inputs", document["inputs"]), ("outputs", document["outputs"])):
        click.echo(f"\n{title}")
        for key, spec in specs.items():
            kind = spec.get("kind") or " or ".join(spec["kinds"])
            notes = "".join(f", {n}" for n in ("optional", "many") if spec.get(n))
            click.echo(f"  {key}: {kind}{notes}. {spec['description']}")
    click.echo("\nparameters")
    schema = document["params"]
    for key, field in schema.get("properties", {}).items():
        default = f" [{field['default']}]" if "default" in field else " (required)"
        click.echo(f"  {key}: {_type(field)}{default}. {field.get('description', '')}")


@stage.command(name="run")
@click.argument("name")
@click.option("--input", "inputs", metavar="NAME=URI", multiple=True, help="An input; repeat it for a list.")
@click.option("--param", "params", metavar="KEY=VALUE", multiple=True, help="A parameter; the value is YAML.")
@click.option("-n", "ranks", default=1, show_default=True, metavar="RANKS", help="MPI ranks that work.")
@click.option("--threads", default=1, show_default=True, help="Threads a rank may use.")
@click.option("--memory-gb", type=float, help="Memory of all ranks together (only checked against this machine).")
@click.option("--allow-failed-tasks", default=0, show_default=True, help="Tasks that may fail.")
@click.option("--retry-quarantined", is_flag=True, help="Try again what earlier attempts gave up.")
@store_option
@json_option
def run_stage(
    name: str,
    inputs: tuple[str, ...],
    params: tuple[str, ...],
    ranks: int,
    threads: int,
    memory_gb: float | None,
    allow_failed_tasks: int,
    retry_quarantined: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Run one stage and print its result as JSON: key, reused, outputs, metrics.

    A finished job is not run again. Ctrl-C drains: the same command goes on.
    """
    result = run_here(
        name, split_assignments(inputs, "--input"), parse_assignments(params, "--param"), store_uri(store),
        ranks=ranks, threads=threads, memory_gb=memory_gb, allow_failed_tasks=allow_failed_tasks,
        retry_quarantined=retry_quarantined, quiet=as_json,
    )  # fmt: skip
    print_json(result)


def run_here(
    name: str,
    inputs: dict[str, list[str]],
    params: dict[str, Any],
    store: str,
    *,
    ranks: int = 1,
    threads: int = 1,
    memory_gb: float | None = None,
    allow_failed_tasks: int = 0,
    retry_quarantined: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a stage in processes of its own and return its result. Raises UserError; exits if it did not work."""
    from pydantic import ValidationError

    from happyneurons.jobs.attempts import attempt_numbers, settle
    from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
    from happyneurons.stages import load_stage
    from happyneurons.store.documents import Store
    from happyneurons.worker.launch import Launch

    try:
        resources = Resources(ranks=ranks, threads_per_rank=threads, memory_gb=memory_gb)
    except ValidationError as error:
        raise UserError("; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())) from None
    spec = make_spec(load_stage(name), inputs=inputs, params=params, allow_failed_tasks=allow_failed_tasks)
    root = Store(store)
    root.check_writable()
    save_spec(root, spec)
    manifest = settle(root, spec.key)
    reused = manifest is not None
    if manifest is None:
        launch = Launch(job_uri(root, spec.key), resources, retry_quarantined=retry_quarantined)
        code = _launch(launch, name, quiet)
        manifest = settle(root, spec.key)
        if code != EXIT_OK or manifest is None:
            numbers = attempt_numbers(root, spec.key)
            _complain(root, spec.key, numbers[-1] if numbers else 0, code)
            sys.exit(code if code in (EXIT_USAGE, EXIT_TRY_AGAIN) else EXIT_FAILED)
    return {
        "key": spec.key,
        "reused": reused,
        "outputs": {
            output: f"{job_uri(root, spec.key)}/manifest.json#{output}" for output in sorted(manifest.outputs)
        },
        "metrics": manifest.metrics,
    }  # fmt: skip


def _launch(launch: Any, name: str, quiet: bool) -> int:
    """Start an attempt, show its progress, return its exit code. Signals are passed on: it drains."""
    from happyneurons.cli.display import RunDisplay
    from happyneurons.jobs.attempts import attempt_numbers, attempt_progress
    from happyneurons.jobs.spec import parse_job_uri
    from happyneurons.rpc.convert import progress_message
    from happyneurons.worker.launch import start

    root, key = parse_job_uri(launch.job_uri)
    before = attempt_numbers(root, key)
    with tempfile.TemporaryDirectory(prefix="hpn-") as folder, RunDisplay(quiet) as display:
        output = Path(folder) / "output.txt"
        process = start(launch, output)
        with _passed_on(process):
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(LOOK_S)
                    break
                numbers = attempt_numbers(root, key)
                progress = attempt_progress(root, key, numbers[-1]) if len(numbers) > len(before) else None
                if progress:
                    display.advance(name, progress_message(progress))
        if code not in (EXIT_OK, EXIT_TRY_AGAIN):
            click.echo(output.read_text(errors="replace")[-4000:], err=True, nl=False)
    return code


def _complain(root: Any, key: str, number: int, code: int) -> None:
    from happyneurons.jobs.attempts import attempt_end

    end = attempt_end(root, key, number) if number else None
    message = end["message"] if end else f"its processes ended with exit code {code}"
    click.echo(f"hpn: {' '.join(str(message).split())}", err=True)


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Any:
    """SIGINT and SIGTERM go to the attempt, which drains; we then end as it does."""
    before = {
        number: signal.signal(number, lambda *_: process.terminate()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _type(field: dict[str, Any]) -> str:
    """A JSON Schema type for people."""
    if "enum" in field:
        return " | ".join(str(v) for v in field["enum"])
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    limits = [
        f"{sign} {field[name]}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in field
    ]
    return " ".join([str(field.get("type", field.get("$ref", "value")).rpartition("/")[2]), *limits])

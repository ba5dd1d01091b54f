"""`hpn table`: the result of a sweep."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.cli.session import reading
from happyneurons.client.tables import SweepTable
from happyneurons.errors import UserError


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--job", help="Only the table of this job.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV (needs --job where several jobs vary).")
@orchestrator_option
@store_option
@json_option
def table(
    run_id: str, job: str | None, as_csv: bool, orchestrator: str | None, store: str | None, as_json: bool
) -> None:
    """Show what the variants of a sweep cost and how good they are: a row for each combination of values."""
    with reading(orchestrator, store) as client:
        tables = client.run(run_id).sweep_tables()
    known = ", ".join(t.job for t in tables) or "none"
    if job is not None:
        tables = [t for t in tables if t.job == job]
    if not tables:
        wanted = f"job {job} has no variants" if job else "no job has variants (see `sweep:` in docs/pipelines.md)"
        raise UserError(f"run {run_id}: {wanted}; with variants: {known}")
    if as_csv:
        if len(tables) > 1:
            raise UserError(f"run {run_id}: several jobs vary; name one with --job: {known}")
        click.echo(tables[0].to_csv(), nl=False)
    elif as_json:
        print_json([t.to_dict() for t in tables])
    else:
        for found in tables:
            _print(found)


def _print(found: SweepTable) -> None:
    shown = Table(title=escape(found.job), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in found.columns:
        shown.add_column(escape(column), overflow="fold")
    for row in found.rows:
        shown.add_row(*(escape(_text(cell)) for cell in row))
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=10_000)).print(shown)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)

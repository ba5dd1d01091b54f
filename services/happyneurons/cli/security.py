"""`hpn security`: tokens, and checks of the file that servers take with --security."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from happyneurons.cli.options import json_option, print_json


@click.group()
def security() -> None:
    """Who may do what at a server: docs/security.md."""


@security.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), required=True, help="What they may do.")
@click.option("--project", "projects", multiple=True, help="Projects whose runs they see; * for all (may be repeated).")
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="Last day on which it counts [default: never ends].")
@click.option("--file", "path", type=click.Path(path_type=Path, dir_okay=False), help="Tokens file to add its hash to.")
@json_option
def token(
    name: str, role: str, projects: tuple[str, ...], expires: datetime | None, path: Path | None, as_json: bool
) -> None:
    """Make a token for NAME: a person, a microscope, another server. It is shown once and kept nowhere.

    Standard output is the token alone, so `> alice.token` makes the file for $HPN_TOKEN_FILE. The server
    keeps its hash: in the tokens file (--file; a running server notices), or by the line that is printed.
    """
    from happyneurons.rpc.auth.tokens import make_token

    made, line = make_token(path, name, role, list(projects) or ["default"], expires.date() if expires else None)
    if as_json:
        print_json({"token": made, "entry": line.strip().removeprefix("- "), "file": str(path) if path else None})
        return
    click.echo(f"added to {path}" if path else f"a line for the tokens file of the server:\n{line}", err=True)
    click.echo(made)


@security.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def check(path: Path, as_json: bool) -> None:
    """Check a security file and all that it names, as a server would, and say what it means."""
    from happyneurons.rpc.auth.config import load_security
    from happyneurons.rpc.auth.server import Security
    from happyneurons.rpc.auth.tokens import read_tokens

    config = load_security(path)
    Security(config).close()
    entries = list(read_tokens(config.tokens).values()) if config.tokens else []
    callers = [(e.name, e.role, ", ".join(e.projects), "token") for e in entries]
    callers += [(c.common_name or c.san, c.role, ", ".join(c.projects), "certificate") for c in config.certificates]
    if config.oidc:
        callers += [
            (f"{config.oidc.role_claim}: {value}", role, ", ".join(config.oidc.projects), "oidc")
            for value, role in config.oidc.roles.items()
        ]
    tls = "none: a proxy in front ends it" if config.tls is None else "server"
    if config.tls is not None and config.tls.client_ca is not None:
        tls = "mutual"
    if as_json:
        fields = ("name", "role", "projects", "by")
        print_json(
            {
                "tls": tls,
                "callers": [dict(zip(fields, c, strict=True)) for c in callers],
                "allowed_roots": config.allowed_roots,
                "limits": config.limits.model_dump(),
            }
        )  # fmt: skip
        return
    click.echo(f"TLS: {tls}")
    for name, role, projects, by in callers:
        click.echo(f"{role:9} {name}  ({by}; projects: {projects or 'none'})")
    click.echo(f"jobs may read: the store, {', '.join(config.allowed_roots) or 'nothing else'}")

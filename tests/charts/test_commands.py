"""Commands in the chart are commands that there are: our own parsers read them."""

from __future__ import annotations

import click
import pytest

from happyneurons.cli.main import main as hpn
from happyneurons.worker.main import main as hpn_stage

from .conftest import NAMES, Object, pods, rendered


def parse(program: click.Command, arguments: list[str]) -> click.Command:
    """The command that these arguments name, having read them. Raises click.UsageError."""
    context = program.make_context("test", list(arguments), resilient_parsing=False)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, context.protected_args + context.args)
        assert command is not None, name
        if isinstance(command, click.Group):
            context = command.make_context(name, rest, parent=context)
            continue
        context = command.make_context(name, rest, parent=context)
    return context.command


def commands(objects: tuple[Object, ...]) -> list[tuple[str, click.Command, list[str]]]:
    found = []
    for what, pod in pods(objects):
        container = pod["spec"]["containers"][0]
        if what == "jobs":
            continue
        stage = "-stage-" in what
        assert container.get("command", ["/opt/hpn/bin/hpn"]) == ["/opt/hpn/bin/hpn"]
        found.append((what, hpn_stage if stage else hpn, container["args"]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_parsed(name: str) -> None:
    read = {what: parse(program, arguments).name for what, program, arguments in commands(rendered(name))}
    assert read["em-orchestrator" if name == "everything" else "neurons-happyneurons-orchestrator"] == "orchestrator"
    if name == "everything":
        assert read["em-stage-gpu"] == "serve"
        assert read["em-volumes"] == "volumes"
        assert read["em-acquisition-sem-1"] == "watch"
        assert read["em-test-health"] == "health"


def test_an_unknown_option_would_be_seen() -> None:
    with pytest.raises(click.UsageError, match="(?i)no such option"):
        parse(hpn_stage, ["serve", "--store=s3://x", "--no-such-thing=1"])

"""The command `hpn`. Each command is imported when it is used, so that `hpn --help` is quick."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from typing import IO, Any

import click

from happyneurons._version import __version__
from happyneurons.errors import EXIT_USAGE, HappyError

# Read when grpc is imported; its own lines say nothing that our errors do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# name → (module:attribute, one line for the list of commands)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("happyneurons.demo.command:demo", "From raw tiles to neurons on a phantom, in minutes."),
    "run": ("happyneurons.cli.run:run", "Carry out a pipeline."),
    "status": ("happyneurons.cli.runs:status", "Show runs, or the jobs of one."),
    "watch": ("happyneurons.cli.runs:watch", "Follow a run until it ends."),
    "logs": ("happyneurons.cli.runs:logs", "Show the log of a job."),
    "table": ("happyneurons.cli.table:table", "Show what the variants of a sweep cost and gave."),
    "explain": ("happyneurons.cli.runs:explain", "Say why a job was computed, reused, or waits."),
    "approve": ("happyneurons.cli.decisions:approve", "Let a run pass a gate."),
    "reject": ("happyneurons.cli.decisions:reject", "Do not let a run pass a gate."),
    "cancel": ("happyneurons.cli.decisions:cancel", "Stop a run."),
    "retry": ("happyneurons.cli.decisions:retry", "Attempt again what did not succeed."),
    "run-inference": ("happyneurons.cli.run_inference:run_inference", "Segment as google/ffn's run_inference.py does."),
    "stage": ("happyneurons.cli.stage:stage", "List, describe and run single stages."),
    "annotate": ("happyneurons.cli.annotate:annotate", "Datasets to a WEBKNOSSOS server, annotations back."),
    "convert": ("happyneurons.cli.convert:convert", "Write a volume in another format."),
    "evaluate": ("happyneurons.cli.evaluate:evaluate", "Score a segmentation against ground truth."),
    "view": ("happyneurons.cli.view:view", "Open results in Neuroglancer."),
    "preview": ("happyneurons.cli.gallery:preview", "Draw results into PNG files."),
    "gallery": ("happyneurons.cli.gallery:gallery", "Write a page of a run's pictures and figures."),
    "publish": ("happyneurons.cli.publish:publish", "Copy results to where browsers can read them."),
    "export": ("happyneurons.cli.export:export", "Write meshes and skeletons as OBJ, PLY and SWC files."),
    "acquire": ("happyneurons.cli.acquire:acquire", "Feed a run from a microscope, or simulate one."),
    "security": ("happyneurons.cli.security:security", "Tokens, and checks of a server's security file."),
    "serve": ("happyneurons.cli.serve:serve", "Start a server: orchestrator, stage or volumes."),
    "site": ("happyneurons.cli.site:site", "Where jobs can run."),
    "health": ("happyneurons.cli.health:health", "Ask whether servers answer."),
}


class OneLineError(click.ClickException):
    """An error as one line that begins with `hpn:`."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"hpn: {self.message}", file=file, err=file is None)


class LazyGroup(click.Group):
    """Imports a command when it is used; turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            rows = [(name, text) for name, (_, text) in COMMANDS.items()]
            formatter.write_dl([*rows, ("version", "Print the version.")])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HappyError as error:
            raise OneLineError(str(error), error.exit_code) from error
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "hpn"
            raise OneLineError(f"{error.format_message()} (see `{where} --help`)", EXIT_USAGE) from error
        except KeyboardInterrupt:
            raise OneLineError("interrupted", 130) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
@click.option("--tls-ca", metavar="FILE", help="CA of servers' certificates, or `system` [default: $HPN_TLS_CA].")
@click.option("--tls-cert", metavar="FILE", help="Own certificate for servers that ask for one [$HPN_TLS_CERT].")
@click.option("--tls-key", metavar="FILE", help="Its key [$HPN_TLS_KEY].")
@click.option("--token-file", metavar="FILE", help="Token for servers with access control [$HPN_TOKEN_FILE].")
def main(tls_ca: str | None, tls_cert: str | None, tls_key: str | None, token_file: str | None) -> None:
    """From raw electron microscope tiles to neurons.

    Start with `hpn demo`. Every command takes --json. Exit codes: 0 done, 1 the work failed, 2 the
    request was wrong, 75 try again.
    """
    given = {"HPN_TLS_CA": tls_ca, "HPN_TLS_CERT": tls_cert, "HPN_TLS_KEY": tls_key, "HPN_TOKEN_FILE": token_file}
    # Into the environment, where whatever this command starts finds it, too.
    os.environ |= {name: value for name, value in given.items() if value}
    # A handler of its own for each run of the command: standard error may be another one by then (tests).
    logging.basicConfig(
        level=os.environ.get("HPN_LOG_LEVEL", "ERROR").upper(), stream=sys.stderr, force=True,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )  # fmt: skip


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print the version."""
    click.echo(json.dumps({"version": __version__}) if as_json else __version__)


if __name__ == "__main__":
    main()

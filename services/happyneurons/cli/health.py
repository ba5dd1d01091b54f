"""`hpn health`: whether servers answer, for scripts, probes and `helm test`."""

from __future__ import annotations

import time
from typing import Any

import click

from happyneurons.cli.options import json_option, print_json
from happyneurons.errors import EXIT_TRY_AGAIN, HappyError, UnavailableError

PAUSE_S = 1.0
SERVING = "SERVING"


@click.command()
@click.argument("addresses", metavar="HOST:PORT…", nargs=-1, required=True)
@click.option(
    "--service", default="", help="Service to ask about, such as happyneurons.v1.StageService [default: the server]."
)
@click.option("--wait-s", default=0.0, show_default=True, help="Go on asking for so long until all serve.")
@json_option
def health(addresses: tuple[str, ...], service: str, wait_s: float, as_json: bool) -> None:
    """Ask gRPC servers for their health. Exits with 0 if all serve, else with 75."""
    deadline = time.monotonic() + wait_s
    states = {address: _state(address, service) for address in addresses}
    while any(state != SERVING for state in states.values()) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
        states = {address: _state(address, service) for address in addresses}
    if as_json:
        print_json(states)
    else:
        click.echo("\n".join(f"{address}  {state}" for address, state in states.items()))
    if any(state != SERVING for state in states.values()):
        raise click.exceptions.Exit(EXIT_TRY_AGAIN)


def _state(address: str, service: str) -> str:
    """SERVING, NOT_SERVING, or why it did not say. Raises UserError for an address that is none."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from happyneurons.rpc.client import call, connect

    with connect(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs say nothing of Check
        try:
            answer = call(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout_s=5, peer=address)
        except UnavailableError as error:
            return str(error)
        except HappyError as error:
            return f"{type(error).__name__}: {error}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

"""Options and values that commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
import yaml

from happyneurons.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_STORE = "happyneurons-store"


def json_option(command: F) -> F:
    """`--json`"""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def store_option(command: F) -> F:
    """`--store`, the value as given or None; see `store_uri`."""
    return click.option(
        "--store", metavar="URI", help=f"Root of the store [default: $HPN_STORE, or ./{DEFAULT_STORE}]."
    )(command)


def orchestrator_option(command: F) -> F:
    """`--orchestrator`, the value as given or None; see `orchestrator_address`."""
    return click.option(
        "--orchestrator", metavar="HOST:PORT", help="A running orchestrator [default: $HPN_ORCHESTRATOR]."
    )(command)


def store_uri(given: str | None) -> str:
    """Root of the store that counts."""
    return given or os.environ.get("HPN_STORE") or DEFAULT_STORE


def orchestrator_address(given: str | None, store: str | None) -> str | None:
    """Address of the orchestrator to ask; None if a store was named instead, or nothing."""
    return given or (None if store else os.environ.get("HPN_ORCHESTRATOR")) or None


def parse_assignments(items: Iterable[str], option: str) -> dict[str, Any]:
    """`KEY=VALUE` items: values are YAML, dots in keys nest. Raises UserError."""
    result: dict[str, Any] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise UserError(f"{option} {item}: write KEY=VALUE")
        *parents, last = key.strip().split(".")
        target = result
        for name in parents:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise UserError(f"{option} {item}: {name} has a value already")
        target[last] = _yaml_value(text, f"{option} {item}")
    return result


def split_assignments(items: Iterable[str], option: str) -> dict[str, list[str]]:
    """`KEY=TEXT` items as they are; a key given again adds to its list. Raises UserError."""
    result: dict[str, list[str]] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key.strip() or not text:
            raise UserError(f"{option} {item}: write NAME=VALUE")
        result.setdefault(key.strip(), []).append(text)
    return result


def print_json(value: Any) -> None:
    """A value on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _yaml_value(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{where}: the value is not valid YAML; put text with special characters in quotes") from None

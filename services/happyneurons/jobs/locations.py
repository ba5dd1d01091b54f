"""The one place where requests are asked where they would read and write: inputs and parameters that are paths or URIs.

Fields of parameters say what their text is by `format` in their JSON Schema: `uri-reference` for a path or a URI (with
`written: true` one that the job writes to), `regex` for a pattern, `name` for what is only compared or parsed.
Other text counts as a path as soon as it looks like one, so a stage that does not say so (another package's) is refused
too much rather than too little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from happyneurons.jobs.stage import Stage
from happyneurons.store.roots import SECRET, Roots, secret_in

NO_PLACES = ("regex", "name")
"""Formats of text that is never opened, whatever it looks like."""

Found = list[tuple[str, str]]
"""`(field path, what was expected)`"""


def misplaced(
    stage: type[Stage[Any]],
    inputs: Mapping[str, Sequence[str]],
    params: Mapping[str, Any],
    roots: Roots | None,
    resolve: Callable[[str], str | None] = lambda text: text,
) -> Found:
    """What a job names outside of `roots` (None: only secrets are looked for), before anything is opened.

    resolve: the text as it will be opened, None for what is no location (another job's output).
    """
    found: Found = []

    def ask(path: str, text: str, roots: Roots | None) -> None:
        opened = resolve(text)
        if opened is None:
            return
        problem = roots.problem(opened) if roots else (SECRET if secret_in(opened) else None)
        if problem:
            found.append((path, f"expected {problem}"))

    for name, uris in inputs.items():
        for number, uri in enumerate(uris):
            ask(f"inputs.{name}[{number}]" if len(uris) > 1 else f"inputs.{name}", uri, roots)
    for field, value in params.items():
        kind, written = _field(stage, field)
        where = roots.written if roots and written else roots
        for path, text in _leaves(value, field):
            if kind == "uri-reference" or (kind not in NO_PLACES and looks_like_a_location(text)):
                ask(f"params.{path}", text, where)
    return found


def looks_like_a_location(text: str) -> bool:
    return any(c in text for c in "/\\") or text.startswith(("~", "..")) or "://" in text


def text_format(stage: type[Stage[Any]], field: str) -> str:
    """`format` of a parameter's text, empty if it says none."""
    return _field(stage, field)[0]


def _field(stage: type[Stage[Any]], field: str) -> tuple[str, bool]:
    """What a parameter, whether the stage knows it or not, says of its text: format, and whether it is written to."""
    known = stage.Params.model_fields.get(field)
    extra = known.json_schema_extra if known is not None else None
    return (str(extra.get("format", "")), bool(extra.get("written"))) if isinstance(extra, dict) else ("", False)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(key, str):
                yield f"{path}.{key}", key
            yield from _leaves(part, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}[{number}]")

"""YAML that remembers where each value stood, so that every mistake gets a line and column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str, ...]

# libyaml reads a pipeline in a fraction of the time that Python needs, which was most of the cost of SubmitRun.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DEEPEST = 500
"""Lists and mappings in each other; libyaml composes by recursion in C, where too deep is no Python error."""

MOST_NODES = 200_000
"""Values of a document, aliases written out; a pipeline of ten thousand jobs has fewer."""


@dataclass(frozen=True)
class Violation:
    """A mistake in a pipeline: field path, what was expected, place in the text (from 1; 0 unknown)."""

    field: str
    description: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}: " if self.line else ""
        return f"{where}{self.field}: {self.description}" if self.field else f"{where}{self.description}"


@dataclass
class Source:
    """A parsed document with the places of its fields, and the violations found so far."""

    value: Any = None
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    nodes: int = 0

    def complain(self, path: Path, description: str) -> None:
        """Note a mistake at a field, or at the nearest one around it that is in the text."""
        at = path
        while at and at not in self.places:
            at = at[:-1]
        line, column = self.places.get(at, (0, 0))
        self.violations.append(Violation(".".join(path), description, line, column))


def parse(text: str) -> Source:
    """Parse YAML (the safe subset). Syntax errors and duplicate keys become violations."""
    source = Source()
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        source.violations.append(Violation("", f"not valid YAML: {problem}", *place))
        return source
    except RecursionError:
        source.violations.append(Violation("", "nested too deeply"))
        return source
    if node is not None:
        try:
            source.value = _convert(node, (), source, yaml.SafeLoader(""))
        except _TooMuch:
            source.violations.append(Violation("", f"expected at most {MOST_NODES} values, its aliases written out"))
        except RecursionError:
            source.violations.append(Violation("", "nested too deeply, or in itself"))
    return source


class _TooMuch(Exception):
    pass


def _compose(text: str) -> yaml.Node | None:
    """Raises YAMLError, RecursionError."""
    try:
        _check_depth(text)
        return yaml.compose(text, Loader=LOADER)
    except yaml.YAMLError:  # the last word is Python's: it knows `{a:, b: 1}`, which libyaml does not
        return yaml.compose(text, Loader=yaml.SafeLoader)


def _check_depth(text: str) -> None:
    """Raises RecursionError for a text that is nested too deeply, YAMLError for one that is none."""
    # Each level takes one of these characters, or for lists and mappings in blocks a larger indent.
    if sum(map(text.count, "[{-?:")) <= DEEPEST:
        return
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _convert(node: yaml.Node, path: Path, source: Source, loader: yaml.SafeLoader) -> Any:
    source.nodes += 1
    if source.nodes > MOST_NODES:  # a few lines of aliases of aliases can stand for millions
        raise _TooMuch
    source.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            if key in result:
                source.places[here] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                source.complain(here, "given twice")
            source.places[here] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = _convert(value_node, here, source, loader)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*path, str(i)), source, loader) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except yaml.YAMLError as error:
        source.complain(path, f"not a plain value: {error}")
        return None

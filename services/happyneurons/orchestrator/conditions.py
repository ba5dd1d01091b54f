"""Conditions of gates: comparisons of metrics, such as `align.residual_p95_px < 2 and ingest.sections > 10`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from happyneurons.errors import UserError

LONGEST = 2000

OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def parse_condition(text: str) -> ast.expr:
    """Check a condition's grammar. Raises UserError."""
    if len(text) > LONGEST:
        raise UserError(f"condition: expected at most {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"condition {text!r}: write comparisons like `align.residual_px < 2 and …`") from None
    try:
        _check(tree, text)
    except RecursionError:
        raise UserError(f"condition {text!r}: nested too deeply") from None
    return tree


def metric_names(text: str) -> list[tuple[str, str]]:
    """`(job, metric)` of every metric that a condition names."""
    names = []
    for node in ast.walk(parse_condition(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append((node.value.id, node.attr))
    return names


def evaluate(text: str, metrics: Mapping[tuple[str, str], float]) -> bool:
    """Judge a condition. Raises UserError if a metric is missing: absent figures decide nothing."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            results = [value(v) for v in node.values]
            return all(results) if isinstance(node.op, ast.And) else any(results)
        if isinstance(node, ast.UnaryOp):
            return not value(node.operand) if isinstance(node.op, ast.Not) else -value(node.operand)
        if isinstance(node, ast.Compare):
            terms = [value(node.left), *(value(c) for c in node.comparators)]
            pairs = zip(node.ops, terms, terms[1:], strict=False)
            return all(OPERATORS[type(op)](a, b) for op, a, b in pairs)
        if isinstance(node, ast.Attribute):
            assert isinstance(node.value, ast.Name)
            name = (node.value.id, node.attr)
            if name not in metrics:
                raise UserError(f"condition {text!r}: {name[0]} gives no metric {name[1]!r}")
            return metrics[name]
        assert isinstance(node, ast.Constant)
        return node.value

    return bool(value(parse_condition(text)))


def _check(node: ast.expr, text: str) -> None:
    """Refuse everything but the small language above: conditions come from users' files."""
    children: list[ast.expr] = []
    metric = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    number = isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    if isinstance(node, ast.BoolOp):
        children = node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        children = [node.operand]
    elif isinstance(node, ast.Compare) and all(type(op) in OPERATORS for op in node.ops):
        children = [node.left, *node.comparators]
    elif not metric and not number:
        raise UserError(f"condition {text!r}: only numbers, JOB.METRIC, comparisons, and, or, not are allowed")
    for child in children:
        _check(child, text)

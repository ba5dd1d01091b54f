"""Pieces of PromQL that several panels share."""

from __future__ import annotations

RATE = "$__rate_interval"
RANGE = "$__range"


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, summed over all but the labels in `by`."""
    return f"sum {_by(by)}(rate({metric}{_where(where)}[{RATE}]))"


def grown(metric: str, by: str = "", where: str = "") -> str:
    """How much a counter grew in the time shown."""
    return f"sum {_by(by)}(increase({metric}{_where(where)}[{RANGE}]))"


def total(metric: str, by: str = "", where: str = "") -> str:
    return f"sum {_by(by)}({metric}{_where(where)})"


def most(metric: str, by: str = "", where: str = "") -> str:
    return f"max {_by(by)}({metric}{_where(where)})"


def quantile(q: float, histogram: str, by: str = "", where: str = "", window: str = RATE) -> str:
    """A quantile of what a histogram saw. histogram: without `_bucket`."""
    labels = ", ".join(["le", *([by] if by else [])])
    return f"histogram_quantile({q:g}, sum by ({labels}) (rate({histogram}_bucket{_where(where)}[{window}])))"


def ratio(part: str, whole: str) -> str:
    """0 to 1; nothing where there is no whole."""
    return f"({part}) / (({whole}) > 0)"


def _by(labels: str) -> str:
    return f"by ({labels}) " if labels else ""


def _where(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""


def resolved(expr: str, *, rate_interval: str = "1m", shown: str = "1h") -> str:
    """A query as Grafana would send it: all values of the variables, and so much time shown."""
    text = expr.replace(RATE, rate_interval).replace(RANGE, shown)
    for variable in ("$stage", "$site"):
        text = text.replace(variable, ".*")
    if "$" in text:
        raise ValueError(f"a variable that no board has: {text}")
    return text

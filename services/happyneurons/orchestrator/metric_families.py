"""Parts that metrics are told with: histograms by labels, gauges, counters."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric


class Buckets:
    """A histogram by label values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self.sums: Counter[tuple[str, ...]] = Counter()

    def touch(self, labels: tuple[str, ...]) -> None:
        """Show label values for which nothing was observed yet."""
        self.counts[labels]

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        index = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[labels][index] += 1
        self.sums[labels] += value  # type: ignore[assignment]

    def family(self, name: str, text: str, labels: list[str]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=labels)
        for key, counts in sorted(self.counts.items()):
            cumulative = [sum(counts[: i + 1]) for i in range(len(counts))]
            names = [*map(str, self.bounds), "+Inf"]
            family.add_metric(list(key), list(zip(names, cumulative, strict=True)), sum_value=float(self.sums[key]))
        return family


def gauge(name: str, text: str, labels: list[str], values: Any) -> Metric:
    """A gauge. values: label values → figure."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(list(key), float(value))
    return family


def counter(name: str, text: str, labels: list[str], values: Any) -> Metric:
    """A counter. values: label values → figure."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(list(key), float(value))
    return family

"""Parts that metrics are told with: histograms by labels, gauges, counters, and a process's calls of its stores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from happyneurons.store.telemetry import BOUNDS_S, FAILURES, TELEMETRY, Counts


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

    def add(self, labels: tuple[str, ...], counts: Sequence[float], total: float) -> None:
        """Take over what was counted elsewhere: one figure for each bucket, not cumulative, and the values' sum."""
        for index, count in enumerate(counts):
            self.counts[labels][index] += int(count)
        self.sums[labels] += total  # type: ignore[assignment]

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


def store_families(name: str, where: str, counts: Mapping[tuple[str, ...], Counts], labels: list[str]) -> list[Metric]:
    """Calls of stores as a histogram `NAME_seconds` and a counter `NAME_failures`.

    where: who called, for people. counts: values of `labels` → counts by operation.
    """
    seconds = Buckets(BOUNDS_S)
    failures: dict[tuple[str, ...], float] = {}
    for key, operations in counts.items():
        for operation, row in operations.items():
            seconds.add((*key, operation), row[1 + len(FAILURES) :], row[0])
            for kind, number in zip(FAILURES, row[1:], strict=False):
                failures[*key, operation, kind] = failures.get((*key, operation, kind), 0.0) + number
    return [
        seconds.family(f"{name}_seconds", f"Duration of calls of the store by {where}", [*labels, "operation"]),
        counter(
            f"{name}_failures", f"Calls of the store by {where} that failed", [*labels, "operation", "kind"], failures
        ),
    ]


class StoreCollector(Collector):
    """This process's calls of its stores."""

    def collect(self) -> Iterator[Metric]:
        yield from store_families("happyneurons_store_call", "this process", {(): TELEMETRY.snapshot()}, [])

"""What each parameter set is worth: sections tried and ok, run time, error rate, accumulated error.

Which sets a section was tried with and how each did is part of the section's document and of the
task's result. How long it took is not: those bytes depend on nothing but the job, and times differ
from run to run. Times go to `jobs/KEY/set_times/{z:06d}.json`, beside the attempts and the journal, and
what is made of them beside the manifest.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from happyneurons.jobs.stage import Context
from happyneurons.store.documents import Store


@dataclass(frozen=True)
class Try:
    """One parameter set tried on one section. verdict: ok, flagged, or failed (no result at all).

    It is about what the set made of the tiles that there are: a section with an ok is flagged all the
    same if one of its tiles is missing. run_s: by the clock; cpu_s: of this process and of programs
    that it started and that ended.
    """

    name: str
    verdict: str
    run_s: float
    cpu_s: float


class Stopwatch:
    """Clock and CPU time since it was made."""

    def __init__(self) -> None:
        self._start = os.times()

    def tried(self, name: str, verdict: str) -> Try:
        now, start = os.times(), self._start
        cpu = sum(now[:4]) - sum(start[:4])  # user and system, of the process and of its children
        return Try(name, verdict, round(now.elapsed - start.elapsed, 3), round(cpu, 3))


@dataclass(frozen=True)
class SetRow:
    """A row of the table. Rates are parts of 1; None where no section was tried.

    error_rate: of the sections tried with this set, those that are not ok. accumulated_error: of
    all sections that any set was tried on, those not ok after this set and all before it.
    mean_run_s, mean_cpu_s: for a section tried with this set; None where it was not measured.
    """

    name: str
    sections_tried: int
    sections_ok: int
    error_rate: float | None
    accumulated_error: float | None
    mean_run_s: float | None = None
    mean_cpu_s: float | None = None


PARTS = ("", "-optics")
TIMES = ("mean_run_s", "mean_cpu_s")


def verdicts(tries: Iterable[Try]) -> dict[str, str]:
    """Verdict of each set tried on a section, by its name."""
    return {t.name: t.verdict for t in tries}


def set_table(names: Sequence[str], tried: Iterable[Mapping[str, str]]) -> list[SetRow]:
    """A row for each set in the order of escalation. tried: the verdicts of each section, without empty ones."""
    sections = [t for t in tried if t]
    rows, solved = [], 0
    for name in names:
        found = [t[name] for t in sections if name in t]
        ok = found.count("ok")
        solved += ok
        rows.append(
            SetRow(
                name,
                len(found),
                ok,
                _part(len(found) - ok, len(found)),
                _part(len(sections) - solved, len(sections)),
            )
        )
    return rows


def with_times(rows: Sequence[SetRow], sections: Iterable[Iterable[Mapping[str, Any]]]) -> list[SetRow]:
    """The table with mean times of the sections whose times are known."""
    times: dict[str, list[Mapping[str, Any]]] = {}
    for tries in sections:
        for t in tries:
            times.setdefault(t["name"], []).append(t)
    return [_timed(row, times.get(row.name, [])) for row in rows]


def _timed(row: SetRow, tries: Sequence[Mapping[str, Any]]) -> SetRow:
    count = sum(bool(t["verdict"]) for t in tries)
    if not count:
        return row
    means = {name: round(sum(t[name] for t in tries) / count, 3) for name in ("run_s", "cpu_s")}
    return replace(row, mean_run_s=means["run_s"], mean_cpu_s=means["cpu_s"])


def _part(some: int, of_all: int) -> float | None:
    return round(some / of_all, 6) if of_all else None


def put_times(context: Context[Any], z: int, tries: Sequence[Try], part: str = "") -> None:
    """Keep a section's times for `finish`; called by its task. part: of which round, "" or one of PARTS.

    What a set took in a round before the section's own has no verdict, and is added to what it took there.
    """
    if tries:
        context.store.put_json(_times_path(context, z, part), [asdict(t) for t in tries])


def read_times(context: Context[Any], sections: Sequence[int]) -> list[list[dict[str, Any]]]:
    """What `put_times` kept of these sections; nothing of those where there is none."""
    with ThreadPoolExecutor(8) as pool:
        paths = [_times_path(context, z, part) for z in sections for part in PARTS]
        found = pool.map(context.store.find_json, paths)
        return [tries for tries in found if tries]


def put_tables(context: Context[Any], output: str, rows: Sequence[SetRow]) -> None:
    """`sets.json` and `sets.csv`: without times among the bytes of an output, with them beside the manifest."""
    _put(context.output_store(output), "", [{k: v for k, v in asdict(r).items() if k not in TIMES} for r in rows])
    _put(context.store, f"jobs/{context.job_key}/", [asdict(r) for r in rows])


def metrics(rows: Sequence[SetRow]) -> dict[str, float]:
    """What gates can ask of the sets. What nobody tried has no rate and no time."""
    values: dict[str, float] = {}
    for name in ("error_rate", *TIMES):
        values |= {f"{name}_{r.name}": v for r in rows if (v := getattr(r, name)) is not None}
    if rows and rows[-1].accumulated_error is not None:
        values["accumulated_error"] = rows[-1].accumulated_error
    return values


def _times_path(context: Context[Any], z: int, part: str) -> str:
    return f"jobs/{context.job_key}/set_times/{z:06d}{part}.json"


def _put(store: Store, folder: str, rows: Sequence[Mapping[str, Any]]) -> None:
    store.put_json(f"{folder}sets.json", {"sets": list(rows)})
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    store.put(f"{folder}sets.csv", text.getvalue().encode())

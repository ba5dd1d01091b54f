"""How runs get on: what they wait for, when they end, what decisions are due."""

from __future__ import annotations

from charts.boards.panels import ORANGE, RED, Board, Panel, Query, Row, Variable
from charts.boards.queries import RANGE, grown, most, quantile, total

WHERE = 'stage=~"$stage", site=~"$site"'

BOARD = Board(
    "run",
    "Runs",
    "All runs together: Prometheus keeps no series for single runs; `hpn status RUN` and `hpn explain` tell of one.",
    [
        Row(
            "Runs",
            [
                Panel(
                    "Runs by state", "Runs that the orchestrator has in memory.", "none",
                    [Query(total("happyneurons_runs", "state"), "{{state}}")], stacked=True, width=8,
                ),
                Panel(
                    "Runs that ended", "In the time shown.", "none",
                    [Query(grown("happyneurons_runs_ended_total", "state"), "{{state}}")], "bargauge", width=8,
                    decimals=0,
                ),
                Panel(
                    "No progress for",
                    "Longest time that a run with jobs at work has had no event and finished no task.", "s",
                    [Query(most("happyneurons_run_stalled_seconds"), "stalled")],
                    limits=((3600, ORANGE), (7200, RED)), width=8,
                ),
            ],
        ),
        Row(
            "Why anything waits",
            [
                Panel(
                    "Jobs that wait, by reason", "One reason a job: what it waits for first.", "none",
                    [Query(total("happyneurons_jobs_waiting", "reason", WHERE), "{{reason}}")], stacked=True,
                ),
                Panel(
                    "Longest wait, by reason", "Of the job that waits longest for each.", "s",
                    [Query(most("happyneurons_job_wait_seconds", "reason"), "{{reason}}")],
                ),
                Panel(
                    "Jobs by stage and reason", "Now.", "none",
                    [Query(total("happyneurons_jobs_waiting", "stage, site, reason", WHERE), "jobs")], "table",
                ),
                Panel(
                    "Queue time", "From a job's submission to its start: median and 95 % of the time shown, by site.",
                    "s",
                    [
                        Query(
                            quantile(q, "happyneurons_job_queue_seconds", "site", WHERE, RANGE), f"{{{{site}}}} {name}"
                        )
                        for q, name in ((0.5, "median"), (0.95, "95 %"))
                    ],
                ),
            ],
        ),
        Row(
            "Decisions",
            [
                Panel(
                    "Gates", "Of unfinished runs. waiting: a person is asked.", "none",
                    [Query(total("happyneurons_gates", "state"), "{{state}}")], stacked=True, width=8,
                ),
                Panel(
                    "Longest wait for a person", "Of the gates that are open now.", "s",
                    [Query(most("happyneurons_gate_wait_seconds"), "gate")], limits=((86400, ORANGE),), width=8,
                ),
                Panel(
                    "Decisions", "In the time shown: by people, and by conditions on metrics.", "none",
                    [Query(grown("happyneurons_gate_decisions_total", "by, decision"), "{{by}}: {{decision}}")],
                    "bargauge", width=8, decimals=0,
                ),
            ],
        ),
        Row(
            "When it ends",
            [
                Panel(
                    "Time left, by stage", "Of the round at work, the longest of each stage.", "s",
                    [Query(most("happyneurons_job_eta_seconds", "stage", WHERE), "{{stage}}")],
                ),
                Panel(
                    "Jobs that ended", "In the time shown, by outcome. reused: the result was there already.", "none",
                    [Query(grown("happyneurons_jobs_ended_total", "outcome", WHERE), "{{outcome}}")], "bargauge",
                    decimals=0,
                ),
            ],
        ),
    ],
    [Variable("stage", "happyneurons_jobs"), Variable("site", "happyneurons_jobs")],
    [("overview", "Back"), ("stage", "Which stage is slow or fails?"), ("site", "What do sites give?")],
)  # fmt: skip

"""Is the microscope kept up with, does anything wait or fail, what does it cost?"""

from __future__ import annotations

from charts.boards.panels import GREEN, ORANGE, RED, Board, Panel, Query, Row
from charts.boards.queries import grown, most, rate, ratio, total

ALERT_COLOURS = ((1.0, RED),)

BOARD = Board(
    "overview",
    "Overview",
    "The one to open first: lag, what runs, what waits and why, failures, cost, firing alerts.",
    [
        Row(
            "Now",
            [
                Panel(
                    "Lag behind the microscope",
                    "Time since the oldest section that is not through was reported; 0 while nothing is left over.",
                    "s", [Query(most("happyneurons_acquisition_lag_seconds"))], "stat",
                    limits=((900, ORANGE), (3600, RED)), width=4,
                ),
                Panel(
                    "Alerts firing", "Of the rules of HAPPYNeurons; docs/monitoring.md says what to do for each.",
                    "none",
                    [Query('count(ALERTS{alertname=~"HappyNeurons.*", alertstate="firing"}) or vector(0)')],
                    "stat", limits=ALERT_COLOURS, width=4,
                ),
                Panel(
                    "Leader", "Orchestrators that drive runs: one, neither more nor fewer.", "none",
                    [Query(f"{total('happyneurons_leader')} or vector(0)")], "stat", width=4, decimals=0,
                    mappings=(("0", "none", RED), ("1", "one", GREEN)), limits=((2, RED),),
                ),
                Panel(
                    "Runs going on", "Unfinished runs: those with work to do, and those that wait for somebody.",
                    "none",
                    [Query(total("happyneurons_runs", "state", 'state=~"running|waiting"'), "{{state}}")],
                    "stat", width=4, decimals=0,
                ),
                Panel(
                    "Time left", "Of the rounds at work, the longest of all.", "s",
                    [Query(most("happyneurons_run_eta_seconds"))], "stat", width=4,
                ),
                Panel(
                    "Decision due for", "How long the gate has waited for a person that waits longest.", "s",
                    [Query(most("happyneurons_gate_wait_seconds"))], "stat", limits=((3600, ORANGE), (86400, RED)),
                    width=4,
                ),
            ],
        ),
        Row(
            "Work",
            [
                Panel(
                    "Jobs by state", "Jobs of unfinished runs.", "none",
                    [Query(total("happyneurons_jobs", "state"), "{{state}}")], stacked=True,
                ),
                Panel(
                    "Jobs that wait, by reason",
                    "What each waits for: another job, a person at a gate, the acquisition, its site's queue, a site "
                    "that does not answer, …",
                    "none", [Query(total("happyneurons_jobs_waiting", "reason"), "{{reason}}")], stacked=True,
                ),
                Panel(
                    "Task rate", "Tasks done, per second and stage.", "ops",
                    [Query(rate("happyneurons_tasks_total", "stage", 'outcome="done"'), "{{stage}}")],
                ),
                Panel(
                    "Voxels made", "Voxels that tasks made, per second and stage.", "short",
                    [Query(rate("happyneurons_voxels_total", "stage"), "{{stage}}")],
                ),
            ],
        ),
        Row(
            "Failures",
            [
                Panel(
                    "Jobs failed",
                    "In the time shown. user: the request or its input; task: poison; infrastructure: too often.",
                    "none", [Query(grown("happyneurons_jobs_failed_total", "kind"), "{{kind}}")], "bargauge",
                    limits=((1, ORANGE),), width=8, decimals=0,
                ),
                Panel(
                    "Attempts lost", "Attempts that the infrastructure ended, by how; each is tried again.", "none",
                    [Query(grown("happyneurons_retries_total", "kind"), "{{kind}}")], "bargauge",
                    limits=((10, ORANGE),), width=8, decimals=0,
                ),
                Panel(
                    "Share of store calls that fail", "Of the servers and of the ranks of jobs.", "percentunit",
                    [
                        Query(
                            ratio(
                                rate("happyneurons_store_call_failures_total"),
                                rate("happyneurons_store_call_seconds_count"),
                            ),
                            "servers",
                        ),
                        Query(
                            ratio(
                                rate("happyneurons_rank_store_call_failures_total"),
                                rate("happyneurons_rank_store_call_seconds_count"),
                            ),
                            "ranks",
                        ),
                    ],
                    limits=((0.01, ORANGE), (0.1, RED)), width=8,
                ),
            ],
        ),
        Row(
            "Cost",
            [
                Panel(
                    "Cost", "Of the time shown, by stage, as the sites file has prices.", "none",
                    [Query(grown("happyneurons_cost_total", "stage, currency"), "{{stage}} ({{currency}})")],
                    "bargauge", width=8, decimals=2,
                ),
                Panel(
                    "Cores in use", "That running jobs hold, by site.", "none",
                    [Query(total("happyneurons_cores_in_use", "site"), "{{site}}")], stacked=True, width=8,
                ),
                Panel(
                    "Budget used", "Cost of the last 30 days as a share of the site's budget.", "percentunit",
                    [
                        Query(
                            f"{total('increase(happyneurons_cost_total[30d])', 'site, currency')}"
                            f" / {total('happyneurons_site_budget', 'site, currency')}",
                            "{{site}} ({{currency}})",
                        )
                    ],
                    "bargauge", limits=((0.8, ORANGE), (1.0, RED)), width=8, maximum=1.2,
                ),
            ],
        ),
    ],
    links=[
        ("run", "Why does it take so long?"), ("stage", "Which stage is slow or fails?"),
        ("site", "What do sites give?"), ("acquisition", "Is the microscope kept up with?"),
        ("service", "Are the servers and the store well?"),
    ],
)  # fmt: skip

"""Sites: cores and nodes that jobs hold, queues, the elastic pool, budgets."""

from __future__ import annotations

from charts.boards.panels import ORANGE, RED, Board, Panel, Query, Row, Variable
from charts.boards.queries import RANGE, grown, most, quantile, rate, total

WHERE = 'site=~"$site"'

BOARD = Board(
    "site",
    "Sites",
    "Where jobs run: how long they queue, what they hold, what the batch system gives, what is left of the budget.",
    [
        Row(
            "Jobs",
            [
                Panel(
                    "Jobs at the site", "Queued: it has not begun with them. Running: an attempt is at work.", "none",
                    [
                        Query(
                            total("happyneurons_jobs", "site, state", f'{WHERE}, state=~"queued|running"'),
                            "{{site}} {{state}}",
                        )
                    ],
                    stacked=True, width=8,
                ),
                Panel(
                    "Cores in use", "That running jobs hold.", "none",
                    [Query(total("happyneurons_cores_in_use", "site", WHERE), "{{site}}")], stacked=True, width=8,
                ),
                Panel(
                    "Queue time", "Median and 95 % of the time shown.", "s",
                    [
                        Query(
                            quantile(q, "happyneurons_job_queue_seconds", "site", WHERE, RANGE), f"{{{{site}}}} {name}"
                        )
                        for q, name in ((0.5, "median"), (0.95, "95 %"))
                    ],
                    width=8,
                ),
                Panel(
                    "Attempts lost", "In the time shown, by how the infrastructure ended them.", "none",
                    [Query(grown("happyneurons_retries_total", "site, kind", WHERE), "{{site}}: {{kind}}")],
                    "bargauge", limits=((10, ORANGE),), decimals=0,
                ),
                Panel(
                    "Jobs that wait because the site does not answer", "0 is well.", "none",
                    [
                        Query(
                            f"{total('happyneurons_jobs_waiting', where=f'{WHERE}, reason=`site_away`')} or vector(0)",
                            "waiting",
                        )
                    ],
                    limits=((1, RED),),
                ),
            ],
        ),
        Row(
            "Batch systems",
            [
                Panel(
                    "Nodes", "In batch jobs that take our jobs.", "none",
                    [Query(total("happyneurons_site_nodes", "site, state", WHERE), "{{site}} {{state}}")], stacked=True,
                    width=8,
                ),
                Panel(
                    "Our jobs at the scheduler", "Jobs that wait for nodes, and that run on them.", "none",
                    [Query(total("happyneurons_site_jobs", "site, state", WHERE), "{{site}} {{state}}")], width=8,
                ),
                Panel(
                    "Batch jobs", "That take our jobs.", "none",
                    [Query(total("happyneurons_site_batch_jobs", "site, state", WHERE), "{{site}} {{state}}")], width=8,
                ),
                Panel(
                    "What the pool did", "Batch jobs asked for, given back, refused, in the time shown.", "none",
                    [
                        Query(
                            grown("happyneurons_site_pool_actions_total", "site, action", WHERE), "{{site}}: {{action}}"
                        )
                    ],
                    "bargauge", decimals=0,
                ),
                Panel(
                    "Nodes that batch jobs held", "On average: what the award is charged, idle ones included.",
                    "none", [Query(rate("happyneurons_site_node_seconds_total", "site", WHERE), "{{site}}")],
                ),
            ],
        ),
        Row(
            "Cost",
            [
                Panel(
                    "Node-hours of jobs", "In the time shown, by stage.", "none",
                    [
                        Query(
                            f"{grown('happyneurons_node_seconds_total', 'site, stage', WHERE)} / 3600",
                            "{{site}} {{stage}}",
                        )
                    ],
                    "bargauge", width=8, decimals=2,
                ),
                Panel(
                    "Cost per hour", "At the rate of now.", "none",
                    [
                        Query(
                            f"{rate('happyneurons_cost_total', 'site, currency', WHERE)} * 3600",
                            "{{site}} ({{currency}})",
                        )
                    ],
                    width=8,
                ),
                Panel(
                    "Budget used", "Cost of the last 30 days as a share of what the sites file allows.", "percentunit",
                    [
                        Query(
                            f"{total('increase(happyneurons_cost_total[30d])', 'site, currency')}"
                            f" / {most('happyneurons_site_budget', 'site, currency', WHERE)}",
                            "{{site}} ({{currency}})",
                        )
                    ],
                    "bargauge", limits=((0.8, ORANGE), (1.0, RED)), width=8, maximum=1.2,
                ),
            ],
        ),
    ],
    [Variable("site", "happyneurons_jobs")],
    [("overview", "Back"), ("run", "Why does it take so long?"), ("stage", "Which stage is slow or fails?")],
)  # fmt: skip

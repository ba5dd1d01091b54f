"""Stages: rates, durations, failures, memory, cost, and how good their results are."""

from __future__ import annotations

from charts.boards.panels import ORANGE, RED, Board, Panel, Query, Row, Variable
from charts.boards.queries import RANGE, grown, most, quantile, rate, ratio

WHERE = 'stage=~"$stage"'
CUBIC_M_PER_CUBIC_MM = "1e-9"

BOARD = Board(
    "stage",
    "Stages",
    "What each stage does, what it meets with on compute nodes, what it costs, and how good its results are.",
    [
        Row(
            "Rates",
            [
                Panel(
                    "Tasks done", "Per second.", "ops",
                    [Query(rate("happyneurons_tasks_total", "stage", f'{WHERE}, outcome="done"'), "{{stage}}")],
                    width=8,
                ),
                Panel(
                    "Voxels made", "Per second.", "short",
                    [Query(rate("happyneurons_voxels_total", "stage", WHERE), "{{stage}}")], width=8,
                ),
                Panel(
                    "Bytes written", "Per second, as tasks count what they write.", "Bps",
                    [Query(rate("happyneurons_bytes_total", "stage", WHERE), "{{stage}}")], width=8,
                ),
                Panel(
                    "Duration of tasks", "Median and 95 % of the tasks done in the time shown.", "s",
                    [
                        Query(quantile(q, "happyneurons_task_seconds", "stage", WHERE, RANGE), f"{{{{stage}}}} {name}")
                        for q, name in ((0.5, "median"), (0.95, "95 %"))
                    ],
                ),
                Panel(
                    "Duration of attempts", "Median and 95 % of the attempts that ended in the time shown.", "s",
                    [
                        Query(
                            quantile(q, "happyneurons_job_attempt_seconds", "stage", WHERE, RANGE),
                            f"{{{{stage}}}} {name}",
                        )
                        for q, name in ((0.5, "median"), (0.95, "95 %"))
                    ],
                ),
            ],
        ),
        Row(
            "Failures and memory",
            [
                Panel(
                    "Tries of tasks that failed",
                    "In the time shown. task: its own failure; infrastructure: store, disk, memory.", "none",
                    [Query(grown("happyneurons_task_failures_total", "stage, kind", WHERE), "{{stage}}: {{kind}}")],
                    "bargauge", limits=((1, ORANGE),), width=8, decimals=0,
                ),
                Panel(
                    "Tasks given up", "Quarantined in the time shown, after two tries.", "none",
                    [
                        Query(
                            grown("happyneurons_tasks_total", "stage", f'{WHERE}, outcome="quarantined"'), "{{stage}}"
                        )
                    ],
                    "bargauge", limits=((1, RED),), width=8, decimals=0,
                ),
                Panel(
                    "Memory of a rank", "Most that any one rank of the jobs at work has had.", "bytes",
                    [Query(most("happyneurons_rank_memory_peak_bytes", "stage", WHERE), "{{stage}}")], width=8,
                ),
                Panel(
                    "Store calls of ranks, 95 %", "How long compute nodes wait for the store, by operation.", "s",
                    [
                        Query(
                            quantile(0.95, "happyneurons_rank_store_call_seconds", "operation", WHERE), "{{operation}}"
                        )
                    ],
                    limits=((5, ORANGE),),
                ),
                Panel(
                    "Store calls of ranks that fail", "Per second.", "ops",
                    [
                        Query(
                            rate("happyneurons_rank_store_call_failures_total", "stage, kind", WHERE),
                            "{{stage}}: {{kind}}",
                        )
                    ],
                ),
            ],
        ),
        Row(
            "Cost",
            [
                Panel(
                    "Node-hours", "In the time shown; of a node that is shared its share.", "none",
                    [Query(f"{grown('happyneurons_node_seconds_total', 'stage', WHERE)} / 3600", "{{stage}}")],
                    "bargauge", width=8, decimals=2,
                ),
                Panel(
                    "Cost", "In the time shown, by the prices of the sites file.", "none",
                    [Query(grown("happyneurons_cost_total", "stage, currency", WHERE), "{{stage}} ({{currency}})")],
                    "bargauge", width=8, decimals=2,
                ),
                Panel(
                    "Per mm³ of tissue",
                    "Node-hours and cost of the time shown over the tissue in outputs finished in it.", "none",
                    [
                        Query(
                            ratio(
                                f"{grown('happyneurons_node_seconds_total', 'stage', WHERE)} / 3600",
                                f"{grown('happyneurons_produced_cubic_meters_total', 'stage', WHERE)} / "
                                f"{CUBIC_M_PER_CUBIC_MM}",
                            ),
                            "node-hours",
                        ),
                        Query(
                            ratio(
                                grown("happyneurons_cost_total", "stage", WHERE),
                                f"{grown('happyneurons_produced_cubic_meters_total', 'stage', WHERE)} / "
                                f"{CUBIC_M_PER_CUBIC_MM}",
                            ),
                            "cost",
                        ),
                    ],
                    "table", width=8,
                ),
            ],
        ),
        Row(
            "Quality",
            [
                Panel(
                    "Montage: sections not ok", "Share of the sections judged in the time shown.", "percentunit",
                    [
                        Query(
                            f"{grown('happyneurons_montage_sections_total', 'verdict', 'verdict!~`ok|missing`')} / "
                            f"ignoring (verdict) group_left () ({grown('happyneurons_montage_sections_total')} > 0)",
                            "{{verdict}}",
                        )
                    ],
                    "bargauge", limits=((0.02, ORANGE), (0.1, RED)), width=6, maximum=1.0,
                ),
                Panel(
                    "Montage: distance at seams", "Same tissue in two tiles, of the montage that finished last.",
                    "none",
                    [Query("max by (statistic) (happyneurons_montage_seam_error_pixels)", "{{statistic}} (px)")],
                    "bargauge", limits=((3, ORANGE), (10, RED)), width=6, decimals=2,
                ),
                Panel(
                    "Alignment: pairs that do not match", "Share of those matched in the time shown.", "percentunit",
                    [
                        Query(
                            ratio(
                                grown("happyneurons_align_pairs_total", where='verdict="failed"'),
                                grown("happyneurons_align_pairs_total"),
                            ),
                            "failed",
                        )
                    ],
                    "bargauge", limits=((0.02, ORANGE), (0.1, RED)), width=6, maximum=1.0,
                ),
                Panel(
                    "Distance from the truth", "Of the evaluation that finished last.", "none",
                    [
                        Query(
                            "max by (of, statistic) (happyneurons_evaluation_error_pixels)", "{{of}} {{statistic}} (px)"
                        )
                    ],
                    "bargauge", limits=((3, ORANGE),), width=6, decimals=2,
                ),
                Panel(
                    "Model", "Scores of the model that was trained last, on patches it has not seen.", "percentunit",
                    [Query("max by (score) (happyneurons_model_accuracy_ratio)", "{{score}}")], width=8, maximum=1.0,
                ),
                Panel(
                    "Segmentation: variation of information", "Of the evaluation that finished last.", "none",
                    [Query("max by (part) (happyneurons_evaluation_voi)", "{{part}} (bit)")], stacked=True,
                    width=8,
                ),
                Panel(
                    "Segmentation: adapted Rand error, coverage", "Of the evaluation that finished last.",
                    "percentunit",
                    [
                        Query("max(happyneurons_evaluation_adapted_rand_error_ratio)", "adapted Rand error"),
                        Query("max(happyneurons_evaluation_coverage_ratio)", "coverage"),
                    ],
                    width=8, maximum=1.0,
                ),
            ],
        ),
    ],
    [Variable("stage", "happyneurons_tasks_total")],
    [("overview", "Back"), ("run", "Why does it take so long?"), ("site", "What do sites give?")],
)  # fmt: skip

"""Is the microscope kept up with?"""

from __future__ import annotations

from charts.boards.panels import ORANGE, RED, Board, Panel, Query, Row
from charts.boards.queries import RANGE, grown, most, quantile, rate, ratio, total

SECONDS = "happyneurons_acquisition_section_seconds"

BOARD = Board(
    "acquisition",
    "Acquisition",
    "Open runs: how far they are behind their microscopes, what sections wait for, what was wrong with tiles.",
    [
        Row(
            "Keeping up",
            [
                Panel(
                    "Lag behind the microscope",
                    "Time since the oldest section that is not through the jobs of its batch was reported.", "s",
                    [Query(most("happyneurons_acquisition_lag_seconds"), "lag")],
                    limits=((900, ORANGE), (3600, RED)),
                ),
                Panel(
                    "How fast the lag grows", "Seconds a second: over 0 for long means that it is not kept up with.",
                    "none", [Query("max(deriv(happyneurons_acquisition_lag_seconds[10m]))", "growth")], minimum=None,
                    limits=((0.5, ORANGE),),
                ),
                Panel(
                    "Sections reported", "Per second: the microscope's pace.", "ops",
                    [Query(rate("happyneurons_acquisition_sections_reported_total"), "reported")], width=8,
                ),
                Panel(
                    "Sections done", "Per second: ours.", "ops", [Query(rate(f"{SECONDS}_count"), "done")], width=8,
                ),
                Panel(
                    "From report to done", "Median and 95 % of the sections done in the time shown.", "s",
                    [
                        Query(quantile(q, SECONDS, window=RANGE), name)
                        for q, name in ((0.5, "median"), (0.95, "95 %"))
                    ],
                    width=8,
                ),
            ],
        ),
        Row(
            "Sections",
            [
                Panel(
                    "Sections by state",
                    "Of open runs. gap: between first and last, not reported (yet); failed: `hpn retry RUN`.",
                    "none", [Query(total("happyneurons_acquisition_sections", "state"), "{{state}}")], stacked=True,
                ),
                Panel(
                    "Jobs for each batch", "Of ingest and montage, by state.", "none",
                    [
                        Query(
                            total("happyneurons_jobs", "stage, state", 'stage=~"ingest|montage"'), "{{stage}} {{state}}"
                        )
                    ],
                ),
                Panel(
                    "Open runs", "That take sections.", "none",
                    [Query(total("happyneurons_acquisition_open_runs"))], "stat", width=4, decimals=0,
                ),
                Panel(
                    "Sections waiting or at work", "That are not through the jobs of their batch.", "none",
                    [Query(total("happyneurons_acquisition_sections_waiting"))], "stat", width=4, decimals=0,
                ),
                Panel(
                    "Gaps", "Sections that should be there by now.", "none",
                    [Query(total("happyneurons_acquisition_sections", where='state="gap"'))], "stat", width=4,
                    limits=((1, ORANGE),), decimals=0,
                ),
                Panel(
                    "Failed", "Sections of batches that failed.", "none",
                    [Query(total("happyneurons_acquisition_sections", where='state="failed"'))], "stat", width=4,
                    limits=((1, RED),), decimals=0,
                ),
                Panel(
                    "Tiles not ok", "Share of the tiles that ingest checked in the time shown.", "percentunit",
                    [
                        Query(
                            ratio(
                                grown("happyneurons_ingest_tiles_total", where='verdict!="ok"'),
                                grown("happyneurons_ingest_tiles_total"),
                            )
                        )
                    ],
                    "stat", width=4, limits=((0.001, ORANGE), (0.01, RED)),
                ),
                Panel(
                    "Sections that do not join", "Share of the sections montaged in the time shown.", "percentunit",
                    [
                        Query(
                            ratio(
                                grown("happyneurons_montage_sections_total", where='verdict="failed"'),
                                grown("happyneurons_montage_sections_total"),
                            )
                        )
                    ],
                    "stat", width=4, limits=((0.01, ORANGE), (0.1, RED)),
                ),
            ],
        ),
        Row(
            "Tiles and sections, by verdict",
            [
                Panel(
                    "Tiles", "Checked in the time shown.", "none",
                    [Query(grown("happyneurons_ingest_tiles_total", "verdict"), "{{verdict}}")], "bargauge", decimals=0,
                ),
                Panel(
                    "Montaged sections", "In the time shown.", "none",
                    [Query(grown("happyneurons_montage_sections_total", "verdict"), "{{verdict}}")], "bargauge",
                    decimals=0,
                ),
            ],
        ),
    ],
    links=[("overview", "Back"), ("stage", "Which stage is slow or fails?"), ("site", "What do sites give?")],
)  # fmt: skip

"""Servers and the store: gRPC by method and code, latencies, the leader, memory."""

from __future__ import annotations

from charts.boards.panels import GREEN, ORANGE, RED, Board, Panel, Query, Row
from charts.boards.queries import most, quantile, rate, ratio, total

BAD = 'code=~"INTERNAL|UNAVAILABLE|UNKNOWN|DATA_LOSS|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"'
ALL_CALLS = rate("happyneurons_grpc_calls_total")

BOARD = Board(
    "service",
    "Servers and store",
    "The orchestrator and the stage servers: who leads, how they answer, how the store answers them.",
    [
        Row(
            "Servers",
            [
                Panel(
                    "Leader", "Orchestrators that drive runs.", "none",
                    [Query(f"{total('happyneurons_leader')} or vector(0)")], "stat", width=4, decimals=0,
                    mappings=(("0", "none", RED), ("1", "one", GREEN)), limits=((2, RED),),
                ),
                Panel(
                    "Servers up", "That Prometheus can scrape.", "none",
                    [Query("count(happyneurons_build_info)", "up")], "stat", width=4, decimals=0,
                ),
                Panel(
                    "Scheduler", "Whether the last look at all runs met with errors of the store or a site.", "none",
                    [Query(most("happyneurons_scheduler_failing"))], "stat", width=4, decimals=0,
                    mappings=(("0", "well", GREEN), ("1", "failing", RED)),
                ),
                Panel(
                    "Looks at all runs", "Per second: two where nothing keeps it.", "ops",
                    [Query(rate("happyneurons_scheduler_ticks_total"))], "stat", width=4,
                ),
                Panel(
                    "Duration of a look", "Of the latest; some seconds are too many runs, or a slow store.",
                    "s", [Query(most("happyneurons_scheduler_tick_seconds"))], "stat", width=4,
                    limits=((2, ORANGE), (10, RED)),
                ),
                Panel(
                    "Calls and streams at work", "A watcher holds one of the server's threads.", "none",
                    [Query(total("happyneurons_grpc_calls_in_flight"))], "stat", width=4, decimals=0,
                ),
                Panel(
                    "Memory", "Resident, of each server.", "bytes",
                    [
                        Query(
                            'process_resident_memory_bytes and on (instance) happyneurons_build_info', "{{instance}}"
                        )
                    ],
                    width=8,
                ),
                Panel(
                    "Processor", "Cores that each server takes.", "none",
                    [
                        Query(
                            "rate(process_cpu_seconds_total[$__rate_interval])"
                            " and on (instance) happyneurons_build_info",
                            "{{instance}}",
                        )
                    ],
                    width=8,
                ),
                Panel(
                    "Stage servers: cores", "What jobs hold, and what is left.", "none",
                    [Query(total("happyneurons_stage_server_cores", "instance, state"), "{{instance}} {{state}}")],
                    stacked=True, width=8,
                ),
                Panel(
                    "Stage servers: jobs", "In their queues and at work.", "none",
                    [Query(total("happyneurons_stage_server_jobs", "instance, state"), "{{instance}} {{state}}")],
                ),
                Panel(
                    "Stage servers: memory", "What jobs asked for, and what is left.", "bytes",
                    [
                        Query(
                            total("happyneurons_stage_server_memory_bytes", "instance, state"), "{{instance}} {{state}}"
                        )
                    ],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "gRPC",
            [
                Panel(
                    "Calls", "Per second, by method.", "ops",
                    [Query(rate("happyneurons_grpc_calls_total", "method"), "{{method}}")],
                ),
                Panel(
                    "Calls that were not OK", "Per second, by code.", "ops",
                    [Query(rate("happyneurons_grpc_calls_total", "method, code", 'code!="OK"'), "{{method}} {{code}}")],
                ),
                Panel(
                    "Share of calls that failed by our fault", "Internal, unavailable, too late, too much.",
                    "percentunit",
                    [
                        Query(
                            f"{ratio(rate('happyneurons_grpc_calls_total', where=BAD), ALL_CALLS)} or 0 * {ALL_CALLS}",
                            "failed",
                        )
                    ],
                    limits=((0.01, ORANGE), (0.05, RED)), width=8,
                ),
                Panel(
                    "Latency of unary calls", "Median and 99 %.", "s",
                    [
                        Query(quantile(q, "happyneurons_grpc_call_seconds"), name)
                        for q, name in ((0.5, "median"), (0.99, "99 %"))
                    ],
                    limits=((1, ORANGE),), width=8,
                ),
                Panel(
                    "Latency, 95 %, by method", "Of unary calls.", "s",
                    [Query(quantile(0.95, "happyneurons_grpc_call_seconds", "method"), "{{method}}")], width=8,
                ),
            ],
        ),
        Row(
            "Store",
            [
                Panel(
                    "Calls of the store", "Of the servers, per second, by operation.", "ops",
                    [Query(rate("happyneurons_store_call_seconds_count", "operation"), "{{operation}}")], width=8,
                ),
                Panel(
                    "Latency of the store, 95 %", "As the servers see it.", "s",
                    [Query(quantile(0.95, "happyneurons_store_call_seconds", "operation"), "{{operation}}")],
                    limits=((1, ORANGE), (5, RED)), width=8,
                ),
                Panel(
                    "Calls of the store that fail",
                    "Per second. unavailable: it did not answer as it should, after retries; denied: credentials.",
                    "ops",
                    [
                        Query(
                            rate("happyneurons_store_call_failures_total", "operation, kind"), "{{operation}} {{kind}}"
                        )
                    ],
                    limits=((0.01, RED),), width=8,
                ),
            ],
        ),
    ],
    links=[("overview", "Back"), ("run", "Why does it take so long?"), ("site", "What do sites give?")],
)  # fmt: skip

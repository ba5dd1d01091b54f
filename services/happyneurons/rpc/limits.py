"""Limits that servers and clients must agree on."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 16 * 2**20
"""Larger messages are refused with RESOURCE_EXHAUSTED. Data never travels over gRPC, only references to it."""

KEEPALIVE_S = 30
"""An idle connection is probed this often, so that a watcher notices a dead peer."""

MESSAGE_SIZE_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

MAX_STREAMS = 1000
"""Streams that a server carries at a time, each on a thread of its own; the next one is refused with
RESOURCE_EXHAUSTED. They never take the threads of calls that answer once."""

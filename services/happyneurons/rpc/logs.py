"""Following the log of an attempt in the store, for `TailLogs` and `TailJobLogs`.

Ranks write numbered parts (see happyneurons.worker.logs), and more may come from any rank; so a
resume token says how many parts of each rank were seen: `2:0=14,3=1` is attempt 2, fourteen parts
of rank 0 and one of rank 3. What crashed processes printed (`output.txt`) comes last, as rank -1.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

from happyneurons.errors import NotFoundError, UserError
from happyneurons.jobs.attempts import attempt_end, attempt_folder, attempt_numbers
from happyneurons.store.documents import Store
from happyneurons.v1 import jobs_pb2

TOKEN = re.compile(r"(\d+):((?:-?\d+=\d+(?:,(?!\Z))?)*)\Z")
FOLLOW_S = 1.0
OUTPUT_RANK = -1


def tail_log(
    store: Store, key: str, attempt: int = 0, follow: bool = False, resume_token: str = "",
    alive: Callable[[], bool] = lambda: True,
) -> Iterator[jobs_pb2.LogChunk]:  # fmt: skip
    """Chunks of an attempt's log (0: the latest); with `follow` until the attempt ends.

    alive: whether the reader is still there. Raises NotFoundError (no such attempt) and UserError
    (a resume token that is not one of ours).
    """
    seen: dict[int, int] = {}
    if resume_token:
        attempt, seen = _parse_token(resume_token)
    numbers = attempt_numbers(store, key)
    number = attempt or (numbers[-1] if numbers else 0)
    if number not in numbers:
        known = ", ".join(str(n) for n in numbers if n) or "none yet"
        raise NotFoundError(f"job {key} has no attempt {number or ''}; there are: {known}".replace("  ", " "))
    pause = threading.Event()
    while alive():
        # Looked up before the parts are: what was written until the end is then among them.
        ended = number == 0 or attempt_end(store, key, number) is not None or not follow
        yield from _new_chunks(store, key, number, seen)
        if ended:
            return
        pause.wait(FOLLOW_S)


def _new_chunks(store: Store, key: str, number: int, seen: dict[int, int]) -> Iterator[jobs_pb2.LogChunk]:
    folder = f"{attempt_folder(key, number)}/log"
    for path in sorted(store.list(folder)):
        rank, part = (int(n) for n in path.rsplit("/", 1)[-1].removesuffix(".txt").split("-"))
        if part < seen.get(rank, 0):
            continue
        seen[rank] = part + 1
        yield _chunk(number, rank, store.get(path), seen)
    output = f"{attempt_folder(key, number)}/output.txt"
    if OUTPUT_RANK not in seen and store.exists(output):
        seen[OUTPUT_RANK] = 1
        yield _chunk(number, OUTPUT_RANK, store.get(output), seen)


def _chunk(number: int, rank: int, text: bytes, seen: dict[int, int]) -> jobs_pb2.LogChunk:
    token = f"{number}:{','.join(f'{r}={n}' for r, n in sorted(seen.items()))}"
    return jobs_pb2.LogChunk(attempt=number, rank=rank, text=text.decode(errors="replace"), resume_token=token)


def _parse_token(token: str) -> tuple[int, dict[int, int]]:
    match = TOKEN.match(token)
    if match is None:
        expected = "pass that of the last chunk seen, or none"
        raise UserError(f"resume_token {token!r} is not one of ours: {expected}", [("resume_token", expected)])
    pairs = (pair.split("=") for pair in match[2].split(",") if pair)
    return int(match[1]), {int(rank): int(count) for rank, count in pairs}

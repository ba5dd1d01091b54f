"""What is refused at a secured server, in sizes that unit tests have no time for."""

from __future__ import annotations

import grpc
import pytest
from tests.security.conftest import Lab, lab
from tests.security.test_refused import open_streams

pytestmark = pytest.mark.slow
__all__ = ["lab"]  # the fixture


def test_a_message_of_a_gigabyte(lab: Lab) -> None:
    """Sent for real, in pieces, by a client that knows no bounds."""
    options = [("grpc.max_send_message_length", -1)]
    with lab.access("oskar").channel(lab.server.address, options) as channel:
        send = channel.unary_unary("/happyneurons.v1.PipelineService/SubmitRun")
        with pytest.raises(grpc.RpcError) as caught:
            send(bytes(1 << 30), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_ten_thousand_streams_do_not_starve_a_call(lab: Lab) -> None:
    open_streams(lab, 10_000)

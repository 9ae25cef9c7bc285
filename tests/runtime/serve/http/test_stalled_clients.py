"""A client that does not read its reply cannot hold it in memory for ever."""

from __future__ import annotations

import socket
import sys

import pytest

from eri_runtime.serve.http import ServerOptions, server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux's sockets")


def test_a_client_that_takes_nothing_of_its_reply_is_dropped(monkeypatch):
    monkeypatch.setattr(server, "STALLED", 1)
    with server.listen(ServerOptions(port=0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(30)
            with pytest.raises(OSError, match="timed out") as caught:
                accepted.sendall(bytes(2**26))
            assert caught.value.errno is not None  # by the system, not by `settimeout`

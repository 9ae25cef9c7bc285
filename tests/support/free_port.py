"""A port that nothing listens on."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port of this machine that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]

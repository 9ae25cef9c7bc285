"""The process of a worker: `python -m eri_runtime.serve.worker_process DESCRIPTOR`."""

from __future__ import annotations

import logging
import signal
import sys


def main() -> None:
    """Runs a worker on a connection that the engine has opened."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the engine says when to stop
    logging.basicConfig(level=logging.WARNING, format="eri: %(message)s")
    from eri_runtime.serve.links import serve_connection

    serve_connection(int(sys.argv[1]))


if __name__ == "__main__":
    main()

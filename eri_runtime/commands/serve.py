"""`eri serve`: an HTTP server for bundles."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from eri_runtime.commands.subcommand import Subparsers, add_command, say
from eri_runtime.errors import BackendError

NEEDED = {  # packages of the extra `serve`, by what is imported
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}


def serve_command(commands: Subparsers) -> None:
    """Registers `eri serve`."""
    from eri_runtime.commands.serve_options import add_serve_options

    summary = "Serve bundles over HTTP: OpenAI's Images API, AUTOMATIC1111's, and a web page."
    add_serve_options(add_command(commands, "serve", summary, serve))


def serve(options: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM, then lets accepted requests finish.

    Raises `BackendError` without the extra `serve`, and the errors of `Engine` and of its options.
    """
    check_installed()
    from eri_runtime.commands.serve_options import engine_options, named_bundles, server_options
    from eri_runtime.serve import Engine
    from eri_runtime.serve.http import Metrics, make_app
    from eri_runtime.serve.http.server import run

    metrics = Metrics()
    bundles = named_bundles(options.bundles)
    http = server_options(options)
    app = make_app(Engine(bundles, engine_options(options), metrics), http, metrics)
    run(app, lambda address: say(f"serving {', '.join(bundles)} on {address}"))


def check_installed() -> None:
    """Raises `BackendError` unless the packages of the extra `serve` are installed."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise BackendError(
            "eri serve",
            got=f"no {', '.join(missing)}",
            expected="the packages of the extra `serve`",
            fix="run `pip install 'eri-diffusion[serve]'`",
        )

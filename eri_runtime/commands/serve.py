"""`eri serve`: an HTTP server for bundles."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec

from eri_runtime.commands.subcommand import Subparsers, add_command, say
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.install_hint import install_hint

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
    check_installed(NEEDED, "serve")
    from eri_runtime.commands.serve_options import check_ray

    check_ray(options)
    if options.ray:
        _serve_on_ray(options)
        return
    from eri_runtime.commands.serve_options import engine_options, named_bundles, server_options
    from eri_runtime.serve import Engine
    from eri_runtime.serve.http import Metrics, make_app
    from eri_runtime.serve.http.server import run

    metrics = Metrics()
    bundles = named_bundles(options.bundles)
    http = server_options(options)
    app = make_app(Engine(bundles, engine_options(options), metrics), http, metrics)
    run(app, lambda address: say(f"serving {', '.join(bundles)} on {address}"))


def _serve_on_ray(options: argparse.Namespace) -> None:
    """Serves on Ray until SIGINT or SIGTERM.

    Raises `BackendError` without the extra `ray`, and `UsageError` for port 0, which Ray lacks.
    """
    check_installed({"ray": "ray"}, "ray")
    if options.port == 0:
        raise UsageError("--port", got=0, expected="the number of a port, with --ray")
    from eri_runtime.commands.serve_options import engine_options, named_bundles, server_options
    from eri_runtime.serve.ray_app import serve_on_ray
    from eri_runtime.serve.ray_settings import RayOptions

    bundles = named_bundles(options.bundles)
    given = {"gpus": options.gpus, "max_replicas": options.replicas}
    serve_on_ray(
        bundles,
        engine_options(options),
        server_options(options),
        RayOptions(**{name: value for name, value in given.items() if value is not None}),
        lambda address: say(f"serving {', '.join(bundles)} on {address}"),
    )


def check_installed(needed: Mapping[str, str], extra: str) -> None:
    """Raises `BackendError` unless the packages of an extra are installed.

    Args:
        needed: The packages by what is imported.
        extra: The extra that they belong to.
    """
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise BackendError(
            "eri serve",
            got=f"no {', '.join(missing)}",
            expected=f"the packages of the extra `{extra}`",
            fix=install_hint(extra),
        )

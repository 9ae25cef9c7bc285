"""The options of `eri serve`, and the engine's and server's options that they set."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.commands.cache_option import add_cache_option
from eri_runtime.commands.subcommand import useless_option
from eri_runtime.commands.threads_option import add_threads_option
from eri_runtime.errors import UsageError
from eri_runtime.serve.options import DEFAULT_OPTIONS, EngineOptions, Limits
from eri_runtime.units import parse_bytes

if TYPE_CHECKING:
    from eri_runtime.serve.http import ServerOptions

KEYS = "ERI_API_KEYS"  # environment variable: keys with commas between
_D, _L = DEFAULT_OPTIONS, DEFAULT_OPTIONS.limits


def amount(text: str) -> int:
    """Parses the value of `--memory`."""
    try:
        return parse_bytes("--memory", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options and arguments of `eri serve`."""
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", type=Path, help="folders written by eri export"
    )
    _add_server(parser.add_argument_group("server"))
    engine = parser.add_argument_group("engine")
    _add_engine(engine)
    _add_weights(engine)
    _add_limits(parser.add_argument_group("largest request"))
    _add_ray(parser.add_argument_group("Ray Serve"))


def _add_server(group: Any) -> None:
    """Adds the options of the HTTP server."""
    host, port = "address to listen on (default: this machine only)", "port; 0 takes a free one"
    group.add_argument("--host", default="127.0.0.1", help=host)
    group.add_argument("--port", type=int, default=8000, help=f"{port} (default: %(default)s)")
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"key that clients must send; may be repeated, and {KEYS} adds keys with commas "
        "between (default: none)",
    )
    group.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of a web page that may use the server, or * for all; may be repeated",
    )
    group.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time for accepted requests when the server stops (default: %(default)g)",
    )


def _add_engine(group: Any) -> None:
    """Adds the options of the engine."""
    group.add_argument(
        "--backend", default=_D.backend, metavar="NAME", help="as in eri generate (default: auto)"
    )
    for name, default, text in (
        (
            "workers",
            None,
            f"worker processes; 0 runs all in this one (default: {_D.workers}; none with --ray)",
        ),
        ("queue", _D.queue, "most requests that wait or run; more get 429"),
        ("running", _D.running, "most requests that a worker runs at once"),
    ):
        _add_integer(group, name, default, text)
    for name, seconds, text in (
        ("timeout", _D.timeout, "time after which a request is given up, unless it names fewer"),
        ("heartbeat", _D.heartbeat, "time without a sign of life that kills a busy worker"),
    ):
        shown = f"{text} (default: {seconds:g})"
        group.add_argument(f"--{name}", type=float, default=seconds, metavar="SECONDS", help=shown)
    add_threads_option(group, "CPU threads of each worker (default: the cores, divided by workers)")
    add_cache_option(group)


def _add_integer(group: Any, name: str, default: int | None, text: str) -> None:
    """Adds an option with an integer; `text` says what None stands for."""
    shown = text if default is None else f"{text} (default: {default})"
    group.add_argument(f"--{name}", type=int, default=default, metavar="N", help=shown)


def _add_weights(group: Any) -> None:
    """Adds the options about LoRAs and open bundles."""
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="LoRA that requests may name (default name: the file's stem); may be repeated",
    )
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="map the weights from their files, so that workers share their pages",
    )
    group.add_argument(
        "--memory",
        type=amount,
        metavar="BYTES",
        help="weights of open bundles per worker, such as 8G; the least recently used are closed "
        "above it (default: no limit)",
    )


def _add_limits(group: Any) -> None:
    """Adds the limits of a request."""
    _add_integer(group, "max-pixels", _L.pixels, "pixels per picture")
    _add_integer(group, "max-steps", _L.steps, "denoising steps")
    _add_integer(group, "max-pictures", _L.pictures, "pictures per request")


def _add_ray(group: Any) -> None:
    """Adds the options of Ray Serve."""
    group.add_argument(
        "--ray",
        action="store_true",
        help="serve on Ray: each replica runs an engine in its own process; joins the cluster that "
        "RAY_ADDRESS names, else starts one here",
    )
    group.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="with --ray, most replicas; Ray adds one while they have more than --running requests "
        "each (default: 1)",
    )
    group.add_argument(
        "--gpus",
        type=float,
        metavar="N",
        help="with --ray, GPUs of each replica, such as 1 or 0.5 (default: 0)",
    )


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """Returns the engine's options; raises `UsageError` for an invalid one."""
    limits = Limits(
        pixels=options.max_pixels, steps=options.max_steps, pictures=options.max_pictures
    )
    return EngineOptions(
        backend=options.backend,
        threads=options.threads,
        low_memory=options.low_memory,
        cache=options.keep_compiled,
        workers=0 if options.ray else _D.workers if options.workers is None else options.workers,
        queue=options.queue,
        running=options.running,
        timeout=options.timeout,
        heartbeat=options.heartbeat,
        memory=options.memory,
        loras=named_loras(options.lora),
        limits=limits,
    )


def check_ray(options: argparse.Namespace) -> None:
    """Raises `UsageError` for an option that has no effect with, or without, Ray."""
    useless = ("workers",) if options.ray else ("replicas", "gpus")
    got, fix = ("--ray", "use --replicas") if options.ray else ("no --ray", "add --ray")
    for name in useless:
        if getattr(options, name) is not None:
            raise useless_option(f"--{name}", got=got, fix=fix)


def server_options(options: argparse.Namespace) -> ServerOptions:
    """Returns the server's options; raises `UsageError` for an invalid one."""
    from eri_runtime.serve.http import ServerOptions

    variable = [key.strip() for key in os.environ.get(KEYS, "").split(",")]
    return ServerOptions(
        host=options.host,
        port=options.port,
        api_keys=(*options.api_key, *filter(None, variable)),
        cors=tuple(options.cors),
        grace=options.grace,
    )


def named_loras(texts: Iterable[str]) -> dict[str, Path]:
    """Returns the files of `--lora` by name.

    Raises `UsageError` for a name that comes twice, and for a file that is not there.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        path = Path(file if equals else text).resolve()
        if not path.exists():
            raise UsageError("--lora", got=f"no file {path}", expected="a LoRA")
        _add("--lora", found, name if equals else path.stem, path)
    return found


def named_bundles(paths: Iterable[Path]) -> dict[str, Path]:
    """Returns the bundles by their folders' names; raises `UsageError` for two of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        _add("BUNDLE", found, path.resolve().name, path)
    return found


def _add(offender: str, found: dict[str, Path], name: str, path: Path) -> None:
    """Adds a path under its name; raises `UsageError` if it has none, or it is taken."""
    if not name:
        raise UsageError(offender, got=f"no name for {path}", expected="a name")
    if name in found:
        got = f"{found[name]} and {path}, both named {name!r}"
        raise UsageError(offender, got=got, expected="one of each name")
    found[name] = path

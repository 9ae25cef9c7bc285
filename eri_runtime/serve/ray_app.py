"""The server as a Ray Serve application: replicas on several GPUs and machines.

`serve run eri_runtime.serve.ray_app:build bundles=/models/demo` starts it, and a config file for
`serve deploy` names the same function. Each replica is one engine with the server's HTTP app. Ray
routes requests, adds and removes replicas, and starts those anew that die.

Needs the extra `ray`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from eri_runtime.errors import BackendError
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http import Metrics, make_app
from eri_runtime.serve.http.options import DEFAULT_SERVER, ServerOptions
from eri_runtime.serve.options import EngineOptions
from eri_runtime.serve.ray_settings import (
    ENGINE,
    IN_PROCESS,
    RayOptions,
    Settings,
    for_replicas,
    settings_of,
)

NAME = "eri"  # of the application and of its deployment
RETRY = 5  # seconds after which a client that Ray refuses should try again
LAST_REPLIES = 10  # seconds in which replicas must have ended after `ServerOptions.grace`
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEFAULT_RAY = RayOptions()


def build(args: Mapping[str, Any]) -> serve.Application:
    """Returns the application that the arguments of `serve run` or of a config file describe.

    Args:
        args: As in `settings_of`.

    Raises:
        UnknownNameError: For an argument or option that does not exist.
        UsageError: For an invalid value.
    """
    return application(settings_of(args))


def application(settings: Settings) -> serve.Application:
    """Returns the application of these settings.

    A config file may override what is set here: replicas, autoscaling and every other option of
    the deployment.

    Args:
        settings: The settings.

    Raises:
        UnknownNameError: If there is no engine of the class.
    """
    settings.make_engine  # noqa: B018  fails here, not in every replica
    engine, given = settings.engine, settings.ray
    deployment = serve.deployment(
        serve.ingress()(_replica_class(given.models_per_replica)),
        name=NAME,
        ray_actor_options={"num_gpus": given.gpus, "num_cpus": given.cpus},
        autoscaling_config={
            "min_replicas": given.min_replicas,
            "max_replicas": given.max_replicas,
            "target_ongoing_requests": engine.running,
        },
        max_ongoing_requests=engine.queue,
        max_queued_requests=engine.queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY),
        graceful_shutdown_timeout_s=settings.server.grace,
    )
    return deployment.bind(for_replicas(settings))


def serve_on_ray(
    bundles: Mapping[str, Path],
    options: EngineOptions = IN_PROCESS,
    server: ServerOptions = DEFAULT_SERVER,
    given: RayOptions = DEFAULT_RAY,
    on_ready: Callable[[str], object] = str,
    engine_class: str = ENGINE,
) -> None:
    """Serves on Ray until SIGINT or SIGTERM, then lets accepted requests finish.

    Connects to the cluster that the environment variable `RAY_ADDRESS` names, else starts one on
    this machine, which ends with it. Call it in the main thread.

    Args:
        bundles: Folders of the bundles by name, on every machine of the cluster.
        options: The engine's options, for each replica.
        server: The server's options. `grace` is what a replica gets when it is stopped.
        given: What Ray gives the application.
        on_ready: Called with the server's address once a replica is ready.
        engine_class: The class of the engine, as `MODULE:CLASS`.

    Raises:
        UnknownNameError: If there is no engine of the class.
        BackendError: If the application cannot start; Ray's log says why.
    """
    full = {name: path.absolute() for name, path in bundles.items()}
    app = application(
        Settings(bundles=full, engine=options, server=server, ray=given, engine_class=engine_class)
    )
    try:
        ray.init(ignore_reinit_error=True)
        with _stopped_by_signals() as stopped:  # after `ray.init`, which sets handlers of its own
            _start(app, server)
            on_ready(f"http://{server.host}:{server.port}")
            stopped.wait()
            _drain(server.grace)
    finally:
        serve.shutdown()
        ray.shutdown()


def _start(app: serve.Application, server: ServerOptions) -> None:
    """Starts the proxies and the application; raises `BackendError` if they do not get ready."""
    try:
        serve.start(http_options={"host": server.host, "port": server.port})
        serve.run(app, name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError, RayError) as error:
        fix = "read Ray's log of the replica, in its session's folder `logs/serve`"
        raise BackendError("Ray", got=error, expected="a running application", fix=fix) from error


def _drain(grace: float) -> None:
    """Removes the application, which waits until its replicas have finished their requests."""
    end = time.monotonic() + grace + LAST_REPLIES
    while time.monotonic() < end:
        with suppress(TimeoutError):  # Ray waits a minute at most
            serve.delete(NAME)
            return


def _replica_class(models: int) -> type:
    """Returns the class of a replica; Ray counts `models` bundles as open in one."""

    class Replica:
        """An engine and its HTTP app, whose lifespan Ray runs."""

        def __init__(self, settings: Settings) -> None:
            metrics = Metrics()
            self._engine = settings.make_engine(settings.bundles, settings.engine, metrics)
            self._app = make_app(self._engine, settings.server, metrics)

        def __serve_build_asgi_app__(self) -> ASGIApp:
            """Returns the app."""
            self._app.add_middleware(ModelMiddleware, engine=self._engine, opened=self.opened)
            return self._app

        @serve.multiplexed(max_num_models_per_replica=models)  # type: ignore[untyped-decorator]
        async def opened(self, model: str) -> str:
            """Tells Ray's router that this replica has a bundle; the engine opens it."""
            return model

    return Replica


class ModelMiddleware:
    """Tells Ray which bundle a request is for, if its header says so and the engine has it."""

    def __init__(self, app: ASGIApp, engine: Engine, opened: Callable[[str], Any]) -> None:
        self.app = app
        self.engine = engine
        self.opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http":
            model = serve.get_multiplexed_model_id()
            if model in self.engine.models:
                await self.opened(model)
        await self.app(scope, receive, send)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Gives an event that SIGINT or SIGTERM sets; a second signal raises `KeyboardInterrupt`."""
    stopped = threading.Event()

    def handle(number: int, _: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt(signal.Signals(number).name)
        stopped.set()

    before = {each: signal.signal(each, handle) for each in SIGNALS}
    try:
        yield stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

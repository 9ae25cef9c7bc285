"""What a Ray Serve application is made of, and how `serve run` and a config file say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any, TypeVar, cast

from eri_runtime import checks
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.options import ServerOptions
from eri_runtime.serve.options import EngineOptions, Limits

ENGINE = "eri_runtime.serve.engine:Engine"
IN_PROCESS = EngineOptions(workers=0)
Options = TypeVar("Options", EngineOptions, ServerOptions, Limits)


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """What Ray gives an application.

    Attributes:
        gpus: GPUs of each replica. Several replicas may share one, such as with 0.5.
        cpus: CPUs of each replica, by which Ray counts; see `EngineOptions.threads`.
        min_replicas: Fewest replicas.
        max_replicas: Most replicas. Ray adds one while they run more than `EngineOptions.running`
            requests each, and removes those that have nothing to do.
        models_per_replica: How many bundles Ray counts as open in a replica. It prefers replicas
            that have the bundle which the header `serve_multiplexed_model_id` names.
    """

    gpus: float = 0.0
    cpus: float = 1.0
    min_replicas: int = 1
    max_replicas: int = 1
    models_per_replica: int = 3

    def __post_init__(self) -> None:
        for name in ("gpus", "cpus"):
            checks.real(name, getattr(self, name), checks.NOT_NEGATIVE, lambda it: 0 <= it < inf)
        checks.integer("min_replicas", self.min_replicas, 0)
        checks.integer("max_replicas", self.max_replicas, max(self.min_replicas, 1))
        checks.integer("models_per_replica", self.models_per_replica, 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a replica needs; it can be pickled.

    Attributes:
        bundles: Folders of the bundles by name, on every machine of the cluster.
        engine: The engine's options.
        server: The HTTP server's options; Ray listens, so `host` and `port` are for `serve_on_ray`.
        ray: What Ray gives the application.
        engine_class: The class of the engine, as `MODULE:CLASS`.
    """

    bundles: Mapping[str, Path]
    engine: EngineOptions = IN_PROCESS
    server: ServerOptions = field(default_factory=ServerOptions)
    ray: RayOptions = field(default_factory=RayOptions)
    engine_class: str = ENGINE

    @property
    def make_engine(self) -> type[Engine]:
        """The engine's class; raises `UnknownNameError` if there is none of that name."""
        module, _, name = self.engine_class.partition(":")
        try:
            return cast("type[Engine]", getattr(import_module(module), name))
        except (ImportError, AttributeError, ValueError) as error:
            got, expected = short(self.engine_class), "MODULE:CLASS of an engine"
            raise UnknownNameError("engine_class", got=got, expected=expected) from error


def settings_of(args: Mapping[str, Any]) -> Settings:
    """Returns the settings that the arguments of an application describe.

    Args:
        args: `bundles`, a path, a list of paths or a mapping of names to paths; `engine` and
            `server`, mappings with the names of `EngineOptions` and `ServerOptions`; the names of
            `RayOptions`; and `engine_class`. On the command line of `serve run` every value is a
            text, so there numbers may be texts, and `bundles` has commas between paths.

    Raises:
        UnknownNameError: For an argument or option that does not exist.
        UsageError: For an invalid value.
    """
    rest = dict(checks.mapping("args", args, "arguments by name"))
    bundles = _bundles(rest.pop("bundles", None))
    engine = {"workers": 0, **checks.mapping("engine", rest.pop("engine", {}), "options by name")}
    server = checks.mapping("server", rest.pop("server", {}), "options by name")
    engine_class = checks.string("engine_class", rest.pop("engine_class", ENGINE))
    if "limits" in engine:
        limits = checks.mapping("engine.limits", engine["limits"], "limits by name")
        engine["limits"] = _options(Limits, "engine.limits", limits)
    if "loras" in engine:
        loras = checks.mapping("engine.loras", engine["loras"], "files by name")
        engine["loras"] = {name: _full_path("engine.loras", file) for name, file in loras.items()}
    return Settings(
        bundles=bundles,
        engine=_options(EngineOptions, "engine", engine),
        server=_options(ServerOptions, "server", server),
        ray=_ray_options(rest),
        engine_class=engine_class,
    )


def for_replicas(settings: Settings) -> Settings:
    """Returns the settings for replicas, which keep no pictures for a later request.

    Any replica may get that request, and only one has the pictures.
    """
    return replace(settings, server=replace(settings.server, kept_bytes=0))


def _bundles(value: Any) -> dict[str, Path]:
    """Returns the bundles by name."""
    if isinstance(value, Mapping):
        named = [*checks.mapping("bundles", value, "paths by name").items()]
    else:
        texts = value.split(",") if isinstance(value, str) else value
        paths = [_full_path("bundles", each) for each in checks.items("bundles", texts, "paths")]
        named = [(path.name, path) for path in paths]
    found = {name: _full_path("bundles", path) for name, path in named}
    if not found or len(found) < len(named):
        got = f"{len(named)} paths with {len(found)} names"
        raise UsageError("bundles", got=got, expected="one path or more, each of another name")
    return found


def _full_path(name: str, value: Any) -> Path:
    """Returns a full path, as replicas have other working folders."""
    return checks.path(name, value).absolute()


def _options(kind: type[Options], name: str, values: Mapping[str, Any]) -> Options:
    """Returns options of a class; raises `UnknownNameError` for one that it does not have."""
    known = [each.name for each in fields(kind)]
    for key in values:
        checks.one_of(name, key, known)
    return kind(**values)


def _ray_options(values: Mapping[str, Any]) -> RayOptions:
    """Returns the options of Ray, whose numbers may be texts."""
    numbers: dict[str, Any] = {}
    defaults = asdict(RayOptions())
    for key, value in values.items():
        checks.one_of("args", key, ["bundles", "engine", "server", "engine_class", *defaults])
        numbers[key] = _number(key, value, type(defaults[key]))
    return RayOptions(**numbers)


def _number(name: str, value: Any, kind: type[float]) -> Any:
    """Returns a number that may be a text; raises `UsageError` for a text that is none."""
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(name, got=short(value), expected="a number") from error

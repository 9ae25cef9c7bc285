"""The arguments of a Ray Serve application: what they mean, and which are refused. Needs no Ray."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.serve import Engine
from eri_runtime.serve.ray_settings import RayOptions, Settings, for_replicas, settings_of

TINY, SMALL = Path("/models/tiny"), Path("/models/small")


def test_every_argument_reaches_its_place():
    settings = settings_of(
        {
            "bundles": ["/models/tiny", "/models/small"],
            "engine": {"queue": 8, "limits": {"steps": 50}, "loras": {"ink": "/loras/ink.st"}},
            "server": {"api_keys": ["a"], "grace": 5.0},
            "gpus": 0.5,
            "max_replicas": 4,
        }
    )
    assert dict(settings.bundles) == {"tiny": TINY, "small": SMALL}
    assert (settings.engine.queue, settings.engine.limits.steps) == (8, 50)
    assert settings.engine.loras == {"ink": Path("/loras/ink.st")}
    assert settings.engine.workers == 0  # Ray's replica is the worker
    assert (settings.server.api_keys, settings.server.grace) == (["a"], 5.0)
    assert settings.ray == RayOptions(gpus=0.5, max_replicas=4)
    assert settings.make_engine is Engine
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301  as Ray sends it


@pytest.mark.parametrize(
    "bundles",
    [
        "/models/tiny,/models/small",
        ["/models/tiny", SMALL],
        {"tiny": "/models/tiny", "small": "/models/small"},
    ],
)
def test_bundles_may_be_a_text_a_list_or_a_mapping(bundles):
    assert settings_of({"bundles": bundles}).bundles == {"tiny": TINY, "small": SMALL}


def test_paths_are_made_full():
    assert settings_of({"bundles": "demo"}).bundles == {"demo": Path.cwd() / "demo"}


def test_the_command_line_s_numbers_are_texts():
    words = {"bundles": "/models/tiny", "gpus": "0.5", "max_replicas": "3"}
    assert settings_of(words).ray == RayOptions(gpus=0.5, max_replicas=3)


def test_replicas_keep_no_pictures_for_a_later_request():
    settings = Settings(bundles={"tiny": TINY})
    assert settings.server.kept_bytes > 0
    assert for_replicas(settings).server.kept_bytes == 0


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"bundles": None}, UsageError, "bundles: got None"),
        ({"bundles": []}, UsageError, "bundles: got 0 paths with 0 names"),
        ({"bundles": {}}, UsageError, "bundles: got 0 paths with 0 names"),
        ({"bundles": ["/a/x", "/b/x"]}, UsageError, "bundles: got 2 paths with 1 names"),
        ({"bundles": ["/a/\0"]}, UsageError, "bundles: got"),
        ({"bundle": "/a"}, UnknownNameError, "args: got 'bundle', expected one of bundles"),
        ({"engine": {"workrs": 1}}, UnknownNameError, "engine: got 'workrs'"),
        ({"engine": {"workers": -1}}, UsageError, "workers: got -1"),
        ({"engine": {"limits": {"step": 1}}}, UnknownNameError, "engine.limits: got 'step'"),
        ({"engine": "fast"}, UsageError, "engine: got 'fast'"),
        ({"server": {"port": 70000}}, UsageError, "port: got 70000"),
        ({"gpus": "many"}, UsageError, "gpus: got 'many', expected a number"),
        ({"gpus": -1}, UsageError, "gpus: got -1"),
        ({"max_replicas": 0}, UsageError, "max_replicas: got 0, expected an integer, 1 or more"),
        ({"min_replicas": 3}, UsageError, "max_replicas: got 1, expected an integer, 3 or more"),
        ({"models_per_replica": "1.5"}, UsageError, "models_per_replica: got '1.5'"),
        ({"engine_class": 1}, UsageError, "engine_class: got 1"),
    ],
)
def test_a_bad_argument_is_named(words, kind, message):
    with pytest.raises(kind) as refused:
        settings_of({"bundles": "/models/tiny", **words})
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["", "nothing:Engine", "eri_runtime.serve:Nothing", ":", "a..b:c"])
def test_an_engine_that_is_not_there_is_named(name):
    settings = settings_of({"bundles": "/models/tiny", "engine_class": name})
    with pytest.raises(UnknownNameError, match="engine_class: got"):
        _ = settings.make_engine

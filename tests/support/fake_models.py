"""Models for a `FakeEngine` that start from pictures too, on two kinds of schedules."""

from __future__ import annotations

from dataclasses import replace

from eri_runtime.bundle import Bundle
from eri_runtime.serve import Model
from tests.support.fake_engine import CREATED, FakeEngine, tiny_bundle


def give_models(engine: FakeEngine) -> FakeEngine:
    """Gives an engine the models `flow`, the first, and `vp`."""
    engine.models = {
        name: Model(name=name, bundle=_bundle(name), created=CREATED) for name in ("flow", "vp")
    }
    return engine


def _bundle(kind: str) -> Bundle:
    """A manifest with an encoder, on a schedule of this kind."""
    bundle = tiny_bundle(kind)
    encoder = {"vae_encoder": bundle.components["vae_decoder"]}
    sampler, prediction = ("flow_euler", "flow") if kind == "flow" else ("euler", "eps")
    return replace(
        bundle,
        components={**bundle.components, **encoder},
        schedule=replace(bundle.schedule, kind=kind, prediction=prediction),
        defaults=replace(bundle.defaults, sampler=sampler),
    )

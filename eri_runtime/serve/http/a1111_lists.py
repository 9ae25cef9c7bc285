"""What clients of AUTOMATIC1111's API list: models, samplers, LoRAs, and what this server lacks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from eri_runtime.memory import available_memory
from eri_runtime.sampling import SCHEDULERS, names_of, samplers_for
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.a1111_options import Options, sha256_of
from eri_runtime.serve.status import Model

# what this server has none of, in AUTOMATIC1111's shapes
EMPTY: dict[str, Any] = {
    "upscalers": [],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "sd-modules": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
}


def add_lists(routes: APIRouter, engine: Engine, options: Options) -> None:
    """Adds the routes; the samplers are those of the model that `options` choose."""

    @routes.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        """Lists the models; a title is a name."""
        return [_model(model) for model in engine.models.values()]

    @routes.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        """Lists the samplers of the chosen model."""
        kind = options.model.bundle.schedule.kind
        return [
            {
                "name": each.label,
                "aliases": [each.name, *names_of(each)[1:]],
                "options": {},
            }
            for each in samplers_for(kind)
        ]

    @routes.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        """Lists the schedulers."""
        shape = {"aliases": None, "default_rho": -1, "need_inner_model": False}
        return [{"name": each.name, "label": each.label, **shape} for each in SCHEDULERS]

    _add_loras(routes, engine)
    _add_memory(routes)
    _add_empty(routes)


def _add_loras(routes: APIRouter, engine: Engine) -> None:
    """Adds the LoRAs, and what clients call before a list: all are those of the server's start."""

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        """Lists the LoRAs; no path of the server is shown."""
        return [
            {"name": name, "alias": name, "path": name, "metadata": {}}
            for name in engine.options.loras
        ]

    @routes.post("/refresh-loras")
    @routes.post("/refresh-checkpoints")
    async def refresh() -> None:
        """Does nothing: models and LoRAs are those with which the server was started."""


def _add_memory(routes: APIRouter) -> None:
    """Adds the memory that is left."""

    @routes.get("/memory")
    async def memory() -> dict[str, Any]:
        """Tells how many bytes of memory the server may still take."""
        return _memory()


def _add_empty(routes: APIRouter) -> None:
    """Adds the lists of what this server has none of."""

    def add(name: str, content: Any) -> None:
        @routes.get(f"/{name}", name=name)
        async def nothing() -> Any:
            """Lists nothing: this server has none."""
            return content

    for name, content in EMPTY.items():
        add(name, content)


def _model(model: Model) -> dict[str, Any]:
    """Returns a model in AUTOMATIC1111's words; its file is its name, as no path is shown."""
    sha256 = sha256_of(model)
    return {
        "title": model.name,
        "model_name": model.name,
        "hash": sha256[:10],
        "sha256": sha256,
        "filename": model.name,
        "config": None,
    }


def _memory() -> dict[str, Any]:
    """Returns the memory; what cannot be told says so as AUTOMATIC1111 does."""
    found = available_memory()
    unknown = {"error": "unavailable"}
    ram: dict[str, Any] = {"free": found.bytes} if found else unknown
    return {"ram": ram, "cuda": unknown}

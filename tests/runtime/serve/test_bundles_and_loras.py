"""Several bundles and LoRAs in one worker: each picture is the one it would be alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import eri_export
import eri_runtime as eri
from eri_runtime.errors import LoraError
from eri_runtime.serve import Engine, EngineOptions, PictureRequest
from eri_runtime.serve.open_bundles import OpenBundles, weights_size
from tests.support.serving import SIZE, events, run

INK = Path(eri_export.__file__).parent / "embedded" / "loras" / "emoji-sd35-blue-ink.safetensors"
WORDS = {"height": 64, "width": 64, "num_inference_steps": 3}


def engine(bundles, **options):
    return Engine(bundles, EngineOptions(backend="cpu", threads=1, workers=0, **options))


def first(pictures):
    return np.asarray(pictures.images[0])


def test_requests_with_merged_loras_take_turns(demo_bundle):
    scales = [{}, {"ink": 1.0}, {"ink": 0.5}, {}, {"ink": 1.0}]

    async def main():
        async with engine({"demo": demo_bundle}, loras={"ink": INK}) as opened:
            requests = [
                PictureRequest(prompt="a cat", loras=loras, words={**WORDS, "seed": seed})
                for seed, loras in enumerate(scales)
            ]
            submissions = [opened.submit(each) for each in requests]
            return [(await events(each))[1] for each in submissions]

    found = run(main())
    with eri.load(demo_bundle, "cpu", threads=1) as pipe:
        pipe.load_lora(INK, 0.0, name="ink")
        for seed, (pictures, loras) in enumerate(zip(found, scales, strict=True)):
            pipe.set_loras(loras)
            alone = pipe("a cat", **WORDS, seed=seed)
            np.testing.assert_array_equal(first(pictures), np.asarray(alone.images[0]))
            assert tuple(pictures.parameters) == alone.parameters


def test_a_lora_that_does_not_fit_fails_its_own_requests(demo_bundle, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")

    async def main():
        async with engine({"demo": demo_bundle}, loras={"bad": bad}) as opened:
            failing = opened.submit(PictureRequest(prompt="a", loras={"bad": 1.0}, words=WORDS))
            plain = opened.submit(PictureRequest(prompt="a", words=WORDS))
            with pytest.raises(LoraError):
                await events(failing)
            return await events(plain)

    assert run(main())[1].images


def test_bundles_share_a_worker(sd35_bundle, flux_bundle, sdxl_bundle):
    paths = {"sd35": sd35_bundle, "flux": flux_bundle, "sdxl": sdxl_bundle}

    async def main(memory):
        async with engine(paths, memory=memory) as opened:
            submissions = [
                opened.submit(
                    PictureRequest(
                        model=model,
                        prompt="a cat",
                        words={**SIZE, "num_inference_steps": 3, "seed": seed},
                    )
                )
                for seed in range(2)
                for model in paths
            ]
            return await asyncio.gather(*(events(each) for each in submissions))

    for memory in (None, 1):
        found = run(main(memory))
        for number, (_, pictures) in enumerate(found):
            name = list(paths)[number % 3]
            with eri.load(paths[name], "cpu", threads=1) as pipe:
                words = {**SIZE, "num_inference_steps": 3, "seed": number // 3}
                alone = pipe("a cat", **words).images[0]
            np.testing.assert_array_equal(first(pictures), np.asarray(alone))


def test_the_least_recently_used_bundle_is_closed(sd35_bundle, flux_bundle, sdxl_bundle):
    paths = {"sd35": sd35_bundle, "flux": flux_bundle, "sdxl": sdxl_bundle}
    sizes = {name: weights_size(eri.read_bundle(path)) for name, path in paths.items()}
    limit = sizes["sd35"] + sizes["flux"]
    bundles = OpenBundles(paths, EngineOptions(backend="cpu", memory=limit))
    kept = bundles.get("sd35", ())
    bundles.get("flux", ())
    assert bundles.get("sd35", ()) is kept
    bundles.get("sdxl", {"sd35"})
    assert "flux" not in bundles._opened
    assert bundles.get("sd35", {"sdxl"}) is kept
    bundles.close()

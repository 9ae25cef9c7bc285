"""Step caching: what is skipped, that nothing else changes, and when it is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import ShapeRange, manifest
from eri_runtime.errors import IntegrityError, UnknownNameError, UsageError
from eri_runtime.executors import parted_denoiser
from eri_runtime.executors.tensorrt.backend import TENSORRT
from eri_runtime.loop import FirstBlockCache
from eri_runtime.memory import MemoryEfficientSamplingConfig

FAMILIES = ["sdxl", "sd35", "flux"]
WORDS = {"height": 32, "width": 48, "num_inference_steps": 4, "seed": 3, "output_type": "latent"}
ALL, ONE = 1e-30, 1e9  # thresholds at which every step is computed, and only the first
KINDS = {
    "usual": {},
    "two images": {"num_images_per_prompt": 2},
    "image": {"image": np.full((32, 48, 3), 99, np.uint8), "strength": 0.8},
    "mask": {
        "image": np.full((32, 48, 3), 99, np.uint8),
        "mask": np.eye(32, 48, dtype=np.float32),
        "strength": 1.0,
    },
}


def cached(threshold):
    return {"step_cache": "first_block", "step_cache_threshold": threshold}


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request):
    """Each family's, on ONNX Runtime and with the NumPy loop."""
    with eri.load(
        request.getfixturevalue(f"{request.param}_bundle"), "cpu", loop="numpy"
    ) as opened:
        yield opened


@pytest.fixture
def rests(monkeypatch):
    """Counts how often the other blocks are run."""
    counted, run = [], parted_denoiser._Call.rest
    monkeypatch.setattr(
        parted_denoiser._Call, "rest", lambda call: counted.append(call) or run(call)
    )
    return counted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["no CFG", "CFG"])
def test_in_parts_the_bits_are_those_of_the_whole(pipe, kind, guidance, rests):
    words = {**WORDS, **KINDS[kind]}
    flux = pipe.bundle.family == "flux"
    words |= {"true_cfg_scale" if flux else "guidance_scale": guidance, "negative_prompt": "blurry"}
    plain = pipe("a red heart", **words)
    same = pipe("a red heart", **words, **cached(ALL))
    np.testing.assert_array_equal(same.images, plain.images)
    assert len(rests) == plain.computed_steps == same.computed_steps > 1
    one = pipe("a red heart", **words, **cached(ONE))
    assert (len(rests) - same.computed_steps, one.computed_steps) == (1, 1)
    assert np.isfinite(one.images).all()
    assert not np.array_equal(one.images, plain.images)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "unipc", "dpmpp_sde"])
def test_every_evaluation_of_a_sampler_is_a_step(pipe, sampler):
    if pipe.bundle.family != "sdxl" and sampler == "heun":
        sampler = "flow_heun"
    plain, same = (
        list(pipe.denoise(pipe.request("a red heart", sampler=sampler, **WORDS, **words)))
        for words in ({}, cached(ALL))
    )
    for before, after in zip(plain, same, strict=True):
        np.testing.assert_array_equal(before.x, after.x)
    one = pipe.denoise(pipe.request("a red heart", sampler=sampler, **WORDS, **cached(ONE)))
    assert [step.computed for step in one] == [True, *[False] * (len(plain) - 1)]


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_threshold_of_zero_is_no_cache(sd35_bundle, backend, rests):
    with eri.load(sd35_bundle, backend) as pipe:
        plain = pipe("a red heart", **WORDS)
        same = pipe("a red heart", **WORDS, **cached(0))
    np.testing.assert_array_equal(plain.images, same.images)
    assert rests == []


def test_openvino_decides_alike(pipe):
    words = {**WORDS, **cached(0.2)}
    ours = [*pipe.denoise(pipe.request("a red heart", **words))]
    with eri.load(pipe.bundle.root, "openvino") as other:
        theirs = [*other.denoise(other.request("a red heart", **words))]
    assert [step.computed for step in ours] == [step.computed for step in theirs]
    largest = np.abs(ours[-1].x).max()
    np.testing.assert_allclose(theirs[-1].x, ours[-1].x, atol=1e-4 * largest)


def test_a_skipped_step_adds_what_the_last_computed_one_added(pipe, monkeypatch):
    made, run = [], parted_denoiser.EngineParts.run

    def noted(self, calls, choose):
        inputs = [{name: array.copy() for name, array in each.items()} for each in calls]
        made.append((inputs, run(self, calls, choose)))  # copied: steps write into the same arrays
        return made[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(parted_denoiser.EngineParts, "run", noted)
        list(pipe.denoise(pipe.request("a red heart", **WORDS, **cached(ONE))))
    (first, _), (second, skipped), *_ = made
    kept = []

    def computed(blocks):
        kept.append((blocks[0].hidden, blocks[0].rest()))
        return [kept[-1][1]]

    def from_first(blocks):
        (hidden, rest), own = kept[0], blocks[0].hidden
        return [rest if own is None else own + (rest - hidden)]

    parts = pipe._live.parts()
    parts.run(first, computed)
    np.testing.assert_array_equal(parts.run(second, from_first)[0], skipped[0])
    assert not np.array_equal(parts.run(second, computed)[0], skipped[0])


def test_other_weights_are_used_and_compared_anew(pipe, rests):
    """As `update_weights` and LoRAs change them, in any part."""
    stored = pipe._live.stored("denoiser")
    parts = pipe.bundle.components["denoiser"].step_cache
    names = [next(name for name in part.weights if name.endswith(".bias")) for part in parts]
    other = {name: np.asarray(stored[name]) + np.float32(0.1) for name in names}
    words = {**WORDS, **cached(ALL)}
    before = pipe("a red heart", **words).images
    pipe.update_weights(other)
    try:
        changed = pipe("a red heart", **words).images
        np.testing.assert_array_equal(changed, pipe("a red heart", **WORDS).images)
        assert not np.array_equal(changed, before)
        rests.clear()
        for step in pipe.denoise(pipe.request("a red heart", **WORDS, **cached(ONE))):
            if step.index == 1:
                pipe.reset_weights()
        assert len(rests) == 2
    finally:
        pipe.reset_weights()
    np.testing.assert_array_equal(pipe("a red heart", **words).images, before)


def test_a_loop_that_resumes_computes_its_first_step(pipe):
    request = pipe.request("a red heart", **WORDS, **cached(ONE))
    start = next(iter(pipe.denoise(request)))
    assert [step.computed for step in pipe.denoise(request, start)] == [True, False, False]


def test_the_pictures_say_so(pipe):
    text = pipe("a red heart", **WORDS, **cached(0.25)).parameters[0]
    assert "Step cache: first_block 0.25" in text
    assert "Step cache" not in pipe("a red heart", **WORDS).parameters[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"step_cache_threshold": 0.1}, "step_cache_threshold: got no step_cache"),
        (cached(-1), "step_cache_threshold: got -1, expected a number, 0 or more"),
        (cached(np.nan), "step_cache_threshold: got nan"),
        (cached("0.1"), "step_cache_threshold: got '0.1'"),
    ],
)
def test_wrong_words_are_refused(pipe, words, told):
    with pytest.raises(UsageError, match=told):
        pipe.request("a red heart", **words)
    with pytest.raises(UnknownNameError, match="step_cache: got 'all'"):
        pipe.request("a red heart", step_cache="all")


def test_steps_made_with_others_are_not_cached(pipe):
    with pytest.raises(UsageError, match="step_cache: got a request whose steps are made with"):
        pipe.begin(pipe.request("a red heart", **WORDS, **cached(0.1)))


def test_a_bundle_without_parts_names_the_way_out(sd35_bundle, tmp_path):
    root = shutil.copytree(sd35_bundle, tmp_path / "bundle")
    bundle = manifest.read(root)
    spec = replace(bundle.components["denoiser"], step_cache=())
    components = {**bundle.components, "denoiser": spec}
    (root / "manifest.json").write_text(manifest.dump(replace(bundle, components=components)))
    with eri.load(root) as pipe, pytest.raises(UsageError, match=r"run `eri upgrade .*bundle`"):
        pipe.request("a red heart", **cached(0.1))


def test_what_opens_no_parts_is_refused(sd35_bundle):
    with eri.load(sd35_bundle) as opened:
        spec = opened.bundle.components["denoiser"]
        other = eri.Pipeline(opened.bundle, lambda *_: None)
        with pytest.raises(UsageError, match="step_cache: got components opened by a function"):
            other.request("a red heart", **cached(0.1))
    assert TENSORRT.step_cache_refusal(spec) == "TensorRT, whose plans are of whole graphs"
    assert TENSORRT.of(opened.bundle).step_cache_refusal(spec) is not None
    with (
        eri.load(sd35_bundle, "cpu", loop="step") as pipe,
        pytest.raises(UsageError, match="loop='step': got steps are cached"),
    ):
        pipe("a red heart", **WORDS, **cached(0.1))
    memory = MemoryEfficientSamplingConfig(enable_sequential_cpu_offload=True)
    with (
        eri.load(sd35_bundle, "cpu", memory=memory) as pipe,
        pytest.raises(UsageError, match="step_cache: got a denoiser of which a part is in memory"),
    ):
        pipe("a red heart", **WORDS, **cached(0.1))


def test_a_part_that_was_rewritten_is_not_opened(sd35_bundle, tmp_path):
    root = shutil.copytree(sd35_bundle, tmp_path / "bundle")
    with eri.load(root, "cpu") as pipe:
        request = pipe.request("a red heart", **WORDS, **cached(0.1))
        (root / "denoiser" / "cache-rest.cpu.onnx").write_bytes(b"\0")
        with pytest.raises(IntegrityError, match=r"cache-rest\.cpu\.onnx"):
            list(pipe.denoise(request))


# The rule itself


class Painted(parted_denoiser.PartedDenoiser):
    """Says what the first block adds: the sample; the others add the timestep."""

    def __init__(self, adds=True):
        self.adds, self.rests = adds, 0

    def run(self, calls, choose):
        blocks = [_Block(self, call) for call in calls]
        return list(choose(blocks))

    def close(self):
        """Holds nothing."""


class _Block:
    def __init__(self, owner, call):
        self.owner, self.residual = owner, call["sample"]
        self.hidden = 10 * call["sample"] if owner.adds else None
        self._rest = 10 * call["sample"] + call["timestep"][:, None]

    def rest(self):
        self.owner.rests += 1
        return self._rest


ROWS = ShapeRange(min=1, opt=2, max=2)


def step(cache, values, t, key="", rows=ROWS):
    sample = np.array(values, np.float32)[:, None] * np.ones((1, 3), np.float32)
    inputs = {"sample": sample, "timestep": np.full(len(sample), t, np.float32)}
    return cache.predict(rows, {}, inputs, key)[:, 0].tolist()


def test_it_computes_where_one_image_has_changed():
    network = Painted()
    cache = FirstBlockCache(lambda: network, 0.1, images=2)
    # two conditions of two images, four rows in calls of two
    assert step(cache, [1, 2, 3, 4], 5) == [15, 25, 35, 45]
    assert (cache.computed, network.rests) == (True, 2)
    # image 0 has changed by 0.3/4 of itself, image 1 by 0.5/6: both below
    assert step(cache, [1.3, 2.5, 3, 4], 7) == pytest.approx([18, 30, 35, 45])
    assert (cache.computed, network.rests) == (False, 2)
    # against the last computed step: 0.3/4 and 0.7/6
    assert step(cache, [1.3, 2.7, 3, 4], 7) == pytest.approx([20, 34, 37, 47])
    assert (cache.computed, network.rests) == (True, 4)
    # that one is remembered now
    assert step(cache, [1.3, 2.7, 3, 4], 9) == pytest.approx([20, 34, 37, 47])
    assert not cache.computed


@pytest.mark.parametrize(
    ("values", "key"), [([1, 2], "other"), ([1, 2, 3, 4], ""), ([np.nan, 2], ""), ([1, -2], "")]
)
def test_it_computes_what_it_cannot_compare(values, key):
    network = Painted()
    cache = FirstBlockCache(lambda: network, 0.5, images=2)
    step(cache, [1, 2], 5)
    assert step(cache, [1, 2], 6) == [15, 25]
    assert not cache.computed
    step(cache, values, 7, key)
    assert cache.computed


def test_nothing_is_no_change_of_nothing():
    cache = FirstBlockCache(Painted, 0.5, images=1)
    for t in (1, 2):
        assert step(cache, [0], t) == [t]
        assert cache.computed


def test_a_unet_reads_the_features_of_the_last_computed_step():
    network = Painted(adds=False)
    cache = FirstBlockCache(lambda: network, 0.5, images=1)
    assert step(cache, [1], 5) == [15]
    assert step(cache, [1.2], 7) == [15]
    assert not cache.computed


def test_padding_does_not_decide():
    cache = FirstBlockCache(Painted, 0.1, images=1)
    rows = ShapeRange(min=4, opt=4, max=4)
    assert step(cache, [1, 2], 5, rows=rows) == [15, 25]
    assert step(cache, [1.2, 2], 5, rows=rows) == pytest.approx([17, 25])
    assert not cache.computed  # 0.2/3; with three rows of 2 it would be 0.2/7, with 1.2 more

"""The manifest is read back as written, and refused by place when it says anything else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from eri_runtime.bundle import file_record, manifest
from eri_runtime.bundle.integrity import verify_all, verify_on_load
from eri_runtime.bundle.spec import (
    Bundle,
    ComponentSpec,
    Defaults,
    LatentSpec,
    ScheduleSpec,
    ShapeRange,
    TensorSpec,
    TokenizerSpec,
)
from eri_runtime.errors import (
    BackendError,
    IntegrityError,
    ManifestError,
    NotABundleError,
    UnknownNameError,
)
from eri_runtime.executors.choice import choose, refusals

ONE = {"min": 1, "opt": 1, "max": 1}
INPUTS = {
    "sample": ("batch", 16, "height", "width"),
    "timestep": ("batch",),
    "encoder_hidden_states": ("batch", "tokens", 64),
    "pooled_projections": ("batch", 64),
}


@pytest.fixture
def bundle(tmp_path):
    """A bundle with one component, whose files are not what they say, but hash right."""
    files = {"denoiser/model.onnx": b"graph", "denoiser/weights.safetensors": b"weights"}
    files["tokenizer/tokenizer.json"] = b"{}"
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    denoiser = ComponentSpec(
        graph="denoiser/model.onnx",
        weights="denoiser/weights.safetensors",
        precision="fp32",
        inputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in INPUTS.items()
        ),
        outputs=(TensorSpec(name="output", dtype="float32", shape=INPUTS["sample"]),),
        ranges={
            name: ShapeRange(min=1, opt=2, max=8) for name in ("batch", "height", "width", "tokens")
        },
        parameters=7,
        parity=1e-6,
    )
    bundle = Bundle(
        root=tmp_path,
        family="sd35",
        components={"denoiser": denoiser},
        tokenizers={
            "tokenizer": TokenizerSpec(file="tokenizer/tokenizer.json", max_length=77, pad_id=0)
        },
        schedule=ScheduleSpec(kind="flow", prediction="flow", shift=3),
        latents=LatentSpec(channels=16, factor=8, scale=1.5, shift=0.06, patch=2),
        defaults=Defaults(
            sampler="flow_euler",
            num_inference_steps=28,
            guidance_scale=7.0,
            height=96,
            width=96,
            max_sequence_length=256,
        ),
        files={name: file_record(tmp_path / name) for name in files},
        built_with={"torch": "2.13.0"},
    )
    (tmp_path / "manifest.json").write_text(manifest.dump(bundle))
    return bundle


def rewrite(bundle, change):
    """Apply `change` to the manifest's JSON value and write it back."""
    path = bundle.root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_manifest_is_read_back_as_written(bundle):
    assert manifest.read(bundle.root) == bundle


def test_a_step_graph_of_an_older_manifest_takes_one_row_for_all_images(bundle):
    assert "step_per_image" not in (bundle.root / "manifest.json").read_text()
    assert manifest.read(bundle.root).components["denoiser"].step_per_image is False


def test_a_bundle_may_be_moved(bundle, tmp_path_factory):
    moved = bundle.root.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    verify_all(manifest.read(moved))


def test_no_folder_and_no_manifest_are_told_apart(tmp_path):
    with pytest.raises(NotABundleError, match="no such folder"):
        manifest.read(tmp_path / "missing")
    with pytest.raises(NotABundleError, match=r"no manifest.json.*eri export"):
        manifest.read(tmp_path)


def spoil(*path, value=None, delete=False):
    """A change of the JSON value at `path`."""

    def change(data):
        *parents, last = path
        for key in parents:
            data = data[key]
        if delete:
            del data[last]
        else:
            data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (spoil("schema", value=99), "schema: got 99, expected 2"),
        (spoil("schema", delete=True), "schema: got None"),
        (spoil("latents", delete=True), "latents: got 'nothing'"),
        (spoil("surprise", value=1), "got 'surprise'"),
        (
            spoil("components", "denoiser", "step_per_image", value=True),
            "denoiser.step_per_image: got True, expected a step graph",
        ),
        (spoil("root", value="/"), "got 'root'"),
        (spoil("pins", value=None), "got 'pins'"),
        (spoil("family", value="sd15"), "family: got 'sd15', expected one of sdxl"),
        (spoil("latents", "factor", value="8"), "latents.factor: got '8', expected int"),
        (spoil("latents", "factor", value=True), "latents.factor: got True"),
        (spoil("latents", "scale", value=None), "latents.scale: got None"),
        (spoil("latents", value=[]), "latents: got"),
        (spoil("components", "denoiser", "inputs", value={}), "inputs: got"),
        (spoil("components", "denoiser", "inputs", 0, "shape", value=[1.5]), "shape"),
        (spoil("components", "denoiser", "ranges", value=3), "ranges: got 3"),
        (spoil("components", "denoiser", "ranges", "batch", "max", value=1), "in this order"),
        (spoil("components", "denoiser", "ranges", "batch", delete=True), "ranges: got"),
        (
            spoil(
                "components",
                "denoiser",
                "ranges",
                "x",
                value=dict.fromkeys(("min", "opt", "max"), 1),
            ),
            "ranges: got",
        ),
        (spoil("components", "denoiser", "inputs", 0, "name", value="x"), "inputs: got"),
        (spoil("components", "denoiser", "inputs", 0, "shape", 1, value=4), "inputs.sample: got"),
        (spoil("components", "denoiser", "inputs", 0, "dtype", value="int64"), "inputs.sample"),
        (spoil("components", "denoiser", "outputs", value=[]), "outputs: got"),
        (spoil("components", "denoiser", "activations", value=[{"x*1": 1.0}]), "activations: got"),
        (spoil("components", "x", value={}), "components.x"),
        (spoil("latents", "patch", value=0), "latents.patch: got 0, expected a number, 1 to 64"),
        (spoil("latents", "channels", value=10**6), "latents.channels: got 1000000"),
        (spoil("files", "denoiser/model.onnx", "size", value=-1), "size: got -1"),
        (spoil("files", "a\0b", value={"size": 1, "sha256": ""}), "inside the bundle"),
        (spoil("components", "denoiser", "graph", value="other.onnx"), "other.onnx: got none"),
        (spoil("files", "../../x", value={"size": 1, "sha256": ""}), "inside the bundle"),
        (spoil("files", "/etc/passwd", value={"size": 1, "sha256": ""}), "inside the bundle"),
    ],
)
def test_a_wrong_manifest_is_refused_by_place(bundle, change, where):
    rewrite(bundle, change)
    with pytest.raises(ManifestError, match=where):
        manifest.read(bundle.root)


LISTS = [
    (part, field.name)
    for part, kind in (("latents", LatentSpec), ("schedule", ScheduleSpec), ("defaults", Defaults))
    for field in dataclasses.fields(kind)
    if field.type == "tuple[float, ...]"
]
FITTING = {"mean": 16, "std": 16, "trained_betas": 1000, "thresholding": 2}


@pytest.mark.parametrize(("part", "name"), LISTS)
def test_a_list_of_another_length_than_what_it_belongs_to_is_refused(bundle, part, name):
    """Every list of numbers in the manifest."""
    for length in (1, FITTING[name] - 1, FITTING[name] + 1):
        rewrite(bundle, spoil(part, name, value=[0.5] * length))
        where = rf"{part}\.{name}: got '{length} numbers', expected"
        with pytest.raises(ManifestError, match=where):
            manifest.read(bundle.root)
    rewrite(bundle, spoil(part, name, value=[0.5] * FITTING[name]))
    assert len(getattr(getattr(manifest.read(bundle.root), part), name)) == FITTING[name]


BAD_NUMBERS = (10**40, -(10**40), 10**400, -1e300, 1e300, float("nan"), float("inf"), "1", [], True)


def numbers(value, path=()):
    """The places of the numbers in a JSON tree."""
    if type(value) in (int, float):
        yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value) if isinstance(value, list) else items:
        yield from numbers(each, (*path, key))


def test_every_number_has_limits(bundle):
    """No place of a manifest takes a number that later code could not count or allocate."""
    path = bundle.root / "manifest.json"
    whole = path.read_text()
    places = [place for place in numbers(json.loads(whole)) if place != ("schema",)]
    assert len(places) > 40
    for place in places:
        for bad in BAD_NUMBERS:
            rewrite(bundle, spoil(*place, value=bad))
            with pytest.raises(ManifestError) as caught:
                manifest.read(bundle.root)
            assert len(str(caught.value)) < 1500
            path.write_text(whole)


def test_a_giant_value_is_shortened(bundle):
    for place in (("family",), ("latents", "scale"), ("defaults", "sampler"), ("components",)):
        rewrite(bundle, spoil(*place, value=["x" * 10**6]))
        with pytest.raises(ManifestError) as caught:
            manifest.read(bundle.root)
        assert len(str(caught.value)) < 3000
    rewrite(bundle, spoil("x" * 10**6, value=1))
    with pytest.raises(ManifestError) as caught:
        manifest.read(bundle.root)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00",
        "[" * 10**5,
        '{"a":' * 10**5,
        "9" * 5000,
        "NaN",
        '{"schema": Infinity}',
        "\ufeff{}",
        '"\ud800"',
    ],
)
def test_what_is_not_a_json_object_is_refused(bundle, text):
    (bundle.root / "manifest.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ManifestError):
        manifest.read(bundle.root)


def test_a_changed_file_is_named(bundle):
    (bundle.root / "denoiser/model.onnx").write_bytes(b"grape")
    with pytest.raises(IntegrityError, match=r"model\.onnx: got sha256"):
        verify_on_load(bundle)


def test_a_truncated_or_missing_file_is_named(bundle):
    weights = bundle.root / "denoiser/weights.safetensors"
    weights.write_bytes(b"weight")
    with pytest.raises(IntegrityError, match="got 6 bytes, expected 7 bytes"):
        verify_on_load(bundle)
    weights.unlink()
    with pytest.raises(IntegrityError, match="got no file"):
        verify_on_load(bundle)


def test_changed_weights_are_left_to_the_full_check(bundle):
    """Loading checks their size only; `eri inspect` hashes them."""
    (bundle.root / "denoiser/weights.safetensors").write_bytes(b"weighty")
    verify_on_load(bundle)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors: got sha256"):
        verify_all(bundle)


def test_bfloat16_is_refused_on_the_cpu_with_the_way_out(bundle):
    rewrite(bundle, spoil("components", "denoiser", "precision", value="bf16"))
    changed = manifest.read(Path(bundle.root))
    assert refusals(changed, "cpu")[0].startswith("ONNX Runtime's CPU kernels")
    with pytest.raises(BackendError, match="--precision fp32"):
        choose(changed, "auto")


def test_an_unknown_backend_is_named(bundle):
    with pytest.raises(
        UnknownNameError, match="got 'cuba', expected auto or one of tensorrt, cuda"
    ):
        choose(bundle, "cuba")

"""What ONNX Runtime's CUDA provider needs, refuses and is opened with, on a machine without it."""

from __future__ import annotations

import _ctypes
import dataclasses
import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from eri_runtime.bundle.spec import (
    Bundle,
    ComponentSpec,
    Defaults,
    LatentSpec,
    ScheduleSpec,
    ShapeRange,
    TensorSpec,
)
from eri_runtime.errors import BackendError, UnknownNameError
from eri_runtime.executors.base import Settings
from eri_runtime.executors.choice import (
    AUTO,
    BACKENDS,
    choose,
    describe_backends,
    reasons_against_auto,
    refusals,
)
from eri_runtime.executors.ort import cuda_libraries, provider, session
from eri_runtime.executors.ort.backend import CPU, CUDA, CUDA_TF32
from eri_runtime.install_hint import install_hint
from eri_runtime.memory.estimate import COSTS
from tests.support import stand_in_cuda

MISSING = "libcudnn.so.9: cannot open shared object file: No such file or directory"


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in's CUDA."""
    return stand_in_cuda.install(monkeypatch)


def write_graph(path, operator, kind=TensorProto.FLOAT):
    """A graph of one operator, from x to y, both (1, 1, 2, 2)."""
    shape = [1, 1, 2, 2]
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0] * 4)
    inputs = ["x", "", "scales"] if operator == "Resize" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [scales] if operator == "Resize" else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def component(name, precision="fp32"):
    one = ShapeRange(min=1, opt=1, max=1)
    return ComponentSpec(
        graph=f"{name}/model.onnx",
        weights=f"{name}/weights.safetensors",
        precision=precision,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1, 2, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 1, 2, 2)),),
        ranges={"batch": one},
        parameters=0,
        parity=0.0,
    )


@pytest.fixture
def bundle(tmp_path):
    """A denoiser, and a VAE with the upsampling of the first exporters, both of one operator."""
    write_graph(tmp_path / "denoiser/model.onnx", "Neg")
    write_graph(tmp_path / "vae_decoder/model.onnx", "Resize")
    return Bundle(
        root=tmp_path,
        family="flux",
        components={name: component(name) for name in ("denoiser", "vae_decoder")},
        tokenizers={},
        schedule=ScheduleSpec(kind="flow", prediction="flow", shift=3),
        latents=LatentSpec(channels=1, factor=1, scale=1.0, shift=0.0, patch=1),
        defaults=Defaults(
            sampler="flow_euler",
            num_inference_steps=1,
            guidance_scale=1.0,
            height=2,
            width=2,
            max_sequence_length=1,
        ),
        files={},
        built_with={},
    )


def in_bfloat16(bundle, *names):
    parts = {name: component(name, "bf16") for name in names}
    return dataclasses.replace(bundle, components={**bundle.components, **parts})


# what is refused, and when


def test_a_machine_that_has_everything_is_not_refused(bundle, gpu):
    assert refusals(bundle, "cuda") == refusals(bundle, "cuda:tf32") == []
    assert choose(bundle, "cuda").name == "cuda"
    assert choose(bundle, "cuda:tf32").name == "cuda:tf32"


@pytest.mark.parametrize(("version", "refused"), [("1.24.4", True), ("1.31.0", False)])
def test_an_older_wheel_is_named_with_the_way_out(version, refused, bundle, gpu, monkeypatch):
    monkeypatch.setattr(ort, "__version__", version)
    expected = [f"onnxruntime-gpu 1.24.4 is older than 1.31: {install_hint('gpu', upgrade=True)}"]
    assert refusals(bundle, "cuda") == (expected if refused else [])


def test_a_missing_library_is_said_before_anything_opens(bundle, gpu, monkeypatch):
    monkeypatch.setattr(provider, "missing_libraries", lambda: (MISSING,))
    assert refusals(bundle, "cuda") == [f"{MISSING}: {install_hint('gpu')}"]
    monkeypatch.setitem(BACKENDS, "tensorrt", BACKENDS["cuda"])
    monkeypatch.setitem(BACKENDS, "openvino", BACKENDS["cuda"])
    assert choose(bundle).backend is CPU
    with pytest.raises(BackendError, match=r"model.onnx: got libcudnn.so.9: cannot open"):
        CUDA.executor(bundle.path("denoiser/model.onnx"), bundle.components["denoiser"])
    assert gpu.sessions == []


def test_a_session_that_falls_back_to_the_cpu_gives_the_loaders_reason(
    bundle,
    gpu,
    monkeypatch,
):
    gpu.on_cpu = True
    monkeypatch.setattr(session, "missing_libraries", lambda: ("libcublasLt.so.13: no such file",))
    expected = (
        r"got a session on CPUExecutionProvider; libcublasLt.so.13: no such file, "
        "expected CUDAExecutionProvider"
    )
    with pytest.raises(BackendError, match=expected):
        CUDA.executor(bundle.path("denoiser/model.onnx"), bundle.components["denoiser"])


@pytest.mark.parametrize("backend", ["cuda", "cuda:tf32"])
def test_a_bfloat16_vae_that_resizes_is_refused_before_the_first_step(backend, bundle, gpu):
    sixteen = in_bfloat16(bundle, "denoiser", "vae_decoder")
    (reason,) = refusals(sixteen, backend)
    assert reason.startswith("vae_decoder: CUDA has no bfloat16 Resize: export it again")
    with pytest.raises(BackendError, match="no bfloat16 Resize"):
        choose(sixteen, backend)
    assert gpu.sessions == []
    assert refusals(in_bfloat16(bundle, "denoiser"), backend) == []


def test_auto_passes_over_cuda_if_the_vae_cannot_run_there(bundle, gpu, monkeypatch):
    for name in ("tensorrt", "openvino"):
        monkeypatch.setitem(BACKENDS, name, BACKENDS["cuda"])
    monkeypatch.setitem(BACKENDS, "cpu", dataclasses.replace(CPU, provider=without_lacks()))
    assert choose(bundle).backend.provider is provider.CUDA_PROVIDER
    assert choose(in_bfloat16(bundle, "vae_decoder")).backend is BACKENDS["cpu"]


def without_lacks():
    """A CPU provider that takes every precision."""
    return dataclasses.replace(provider.CPU_PROVIDER, lacks={})


# what a session is opened with


def test_constants_are_not_folded_and_slices_not_joined(bundle, gpu):
    graph, spec = bundle.path("denoiser/model.onnx"), bundle.components["denoiser"]
    x = np.ones((1, 1, 2, 2), np.float32)
    for backend, tf32 in ((CUDA, "0"), (CUDA_TF32, "1")):
        for settings in (Settings(), Settings(low_memory=True)):
            with backend.executor(graph, spec, settings) as executor:
                np.testing.assert_array_equal(executor.run({"x": x})["y"], -x)
            opened = gpu.sessions[-1]
            assert opened.disabled == ("ConstantFolding", "GatherSliceToSplitFusion")
            assert opened.options == {
                "device_id": "0",
                "use_tf32": tf32,
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "HEURISTIC",
            }


def test_the_cpu_folds_constants_unless_memory_is_low():
    assert provider.CPU_PROVIDER.without(Settings()) == ()
    assert "ConstantFolding" in provider.CPU_PROVIDER.without(Settings(low_memory=True))


def test_tf32_is_a_backend_that_only_its_name_chooses(bundle, gpu):
    assert "cuda:tf32" not in AUTO
    assert reasons_against_auto(bundle, "cuda:tf32") == ["rounds more than the bundle does"]
    (line,) = [each for each in describe_backends(bundle) if each.startswith("backend cuda:tf32")]
    assert "use_tf32 1" in line
    assert "without ConstantFolding" in line
    with pytest.raises(UnknownNameError, match=r"got 'cuda:nonsense', expected auto .*cuda:tf32"):
        choose(bundle, "cuda:nonsense")
    assert COSTS.keys() == BACKENDS.keys()


# where libraries are found


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder of NVIDIA's wheels somewhere on the path, and nothing of CUDA anywhere else."""
    root = tmp_path / "elsewhere/nvidia"
    root.mkdir(parents=True)
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(root.parent), *sys.path])
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    importlib.invalidate_caches()
    cuda_libraries.missing_libraries.cache_clear()
    yield root
    cuda_libraries.missing_libraries.cache_clear()


def put(path, source=_ctypes.__file__):
    """A file that the loader takes, under the name of a library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)


@pytest.fixture
def loaded(monkeypatch):
    """The paths that were loaded, of libraries that no test loads under their own name."""
    paths, load = [], cuda_libraries.ctypes.CDLL

    def noted(path):
        found = load(path) if "/" in path else None
        if found is None:
            raise OSError(f"{path}: cannot open shared object file: No such file or directory")
        paths.append(Path(path))
        return found

    monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", noted)
    return paths


LIBRARIES = {
    "cu13/lib": ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"),
    "cudnn/lib": ("libcudnn.so.9",),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's names are Linux's")
def test_libraries_are_found_in_nvidias_wheels_wherever_they_lie(wheels, loaded):
    files = [wheels / folder / name for folder, names in LIBRARIES.items() for name in names]
    for path in files:
        put(path)
    assert cuda_libraries.missing_libraries() == ()
    assert loaded == files


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's names are Linux's")
def test_a_library_that_is_in_no_wheel_is_named_by_the_loader(wheels, loaded):
    for name in LIBRARIES["cu13/lib"]:
        put(wheels / "cu13/lib" / name)
    assert cuda_libraries.missing_libraries() == (MISSING,)


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's names are Linux's")
def test_a_wheels_library_that_does_not_load_says_why(wheels, loaded, tmp_path):
    for folder, names in LIBRARIES.items():
        for name in names:
            put(wheels / folder / name)
    (wheels / "cudnn/lib/libcudnn.so.9").write_bytes(b"cut off")
    (reason,) = cuda_libraries.missing_libraries()
    assert reason == f"{wheels}/cudnn/lib/libcudnn.so.9: file too short"


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's names are Linux's")
def test_onnx_runtimes_own_search_is_the_last_resort(wheels, loaded, monkeypatch, capsys):
    def search():
        sys.stdout.write("Failed to load libcudnn.so.9")
        for folder, names in LIBRARIES.items():
            for name in names:
                put(wheels / folder / name)

    monkeypatch.setattr(ort, "preload_dlls", search)
    assert cuda_libraries.missing_libraries() == ()
    assert capsys.readouterr().out == ""


def test_the_extra_brings_the_libraries_along():
    """The wheel alone depends on none of them; its extras do, and cuDNN on cuBLAS."""
    import tomllib

    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    oldest = ".".join(map(str, provider.OLDEST_GPU))
    assert f"onnxruntime-gpu[cuda,cudnn]>={oldest}" in extras["gpu"]
    assert any(each.startswith("nvidia-cublas") for each in extras["gpu"])

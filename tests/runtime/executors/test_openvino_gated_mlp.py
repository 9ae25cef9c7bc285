"""T5 in bfloat16 on one thread: OpenVINO must not get to the division that kills the process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.executors.base import Settings
from eri_runtime.executors.openvino.backend import cpu_capabilities
from eri_runtime.executors.openvino.gated_mlp import PRECISION, has_gated_mlp, safe_options
from eri_runtime.executors.openvino.library import import_openvino
from eri_runtime.executors.openvino.model import compile_options

# runs every text encoder of a bundle on one thread; as the backend opens it, and in bfloat16
ENCODERS = """
import sys
import numpy as np
import eri_runtime as eri
from eri_runtime.executors import choose
from eri_runtime.executors.base import Settings
from eri_runtime.executors.openvino.executor import OpenVinoExecutor

bundle = eri.read_bundle(sys.argv[1])
engine = choose(bundle, "openvino:bf16", threads=1, cache=False)
found = {}
for name, spec in bundle.components.items():
    if not name.startswith("text_encoder"):
        continue
    (ids,) = spec.inputs
    tokens = ids.shape[1] if isinstance(ids.shape[1], int) else spec.ranges[ids.shape[1]].opt
    inputs = {ids.name: np.arange(tokens).reshape(1, -1)}
    in_bf16 = OpenVinoExecutor(bundle.path(spec.graph), spec, "bf16", Settings(threads=1))
    for way, executor in (("engine", engine(name)), ("bf16", in_bf16)):
        with executor:
            found[f"{name} {way}"] = executor.run(inputs)[spec.outputs[0].name]
np.savez(sys.argv[2], **found)
"""

needs_bf16 = pytest.mark.skipif(
    "BF16" not in cpu_capabilities(), reason="this processor has no bfloat16"
)


@needs_bf16
@pytest.mark.parametrize(("family", "t5"), [("sd35", "text_encoder_3"), ("flux", "text_encoder_2")])
def test_text_encoders_run_in_bfloat16_on_one_thread(family, t5, request, tmp_path):
    root = request.getfixturevalue(f"{family}_bundle")
    command = [sys.executable, "-c", ENCODERS, str(root), str(tmp_path / "found.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert len(found.files) == (6 if family == "sd35" else 4)
    np.testing.assert_array_equal(found[f"{t5} bf16"], found[f"{t5} engine"])  # T5 is in float32
    assert not np.array_equal(found["text_encoder bf16"], found["text_encoder engine"])


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_only_t5_has_a_gated_mlp_without_bias(family, request):
    bundle = eri.read_bundle(request.getfixturevalue(f"{family}_bundle"))
    core, t5 = import_openvino().Core(), {"sd35": "text_encoder_3", "flux": "text_encoder_2"}
    gated = [
        name
        for name, spec in bundle.components.items()
        if has_gated_mlp(core.read_model(bundle.path(spec.graph)))
    ]
    assert gated == [name for name in [t5.get(family)] if name]


def mlp(*, halves=False, biased=False, gated=True):
    """An MLP of a model: gated by a linear of its own, or by a half of one."""
    ov = import_openvino()
    ops = ov.opset8
    x = ops.parameter([1, 4, 8], np.float32)

    def linear(value, rows, columns):
        return ops.matmul(value, ops.constant(np.ones((rows, columns), np.float32)), False, True)

    if halves:
        gate, up = ops.split(linear(x, 32, 8), 2, 2).outputs()
    else:
        gate, up = linear(x, 16, 8).output(0), linear(x, 16, 8).output(0)
    if biased:
        up = ops.add(up, ops.constant(np.ones(16, np.float32))).output(0)
    other = up if gated else ops.constant(np.ones(16, np.float32)).output(0)
    return ov.Model([linear(ops.multiply(ops.gelu(gate, "erf"), other), 8, 16)], [x])


def test_a_gated_mlp_is_known_by_its_products():
    assert has_gated_mlp(mlp())
    assert has_gated_mlp(mlp(halves=True))
    assert not has_gated_mlp(mlp(biased=True))  # OpenVINO does not fuse it
    assert not has_gated_mlp(mlp(gated=False))


@pytest.mark.parametrize(("model", "expected"), [(mlp, "f32"), (lambda: mlp(biased=True), "bf16")])
def test_one_thread_computes_a_gated_mlp_in_float32(model, expected):
    options = compile_options("bf16", Settings(threads=1))
    safe = safe_options(import_openvino().Core(), model(), options)
    assert safe == {**options, PRECISION: expected}


def test_more_threads_keep_bfloat16():
    class Two:
        """OpenVINO with two threads, whatever this machine has."""

        def compile_model(self, *_):
            return self

        def get_property(self, _):
            return 2

    options = compile_options("bf16", Settings())
    assert safe_options(Two(), mlp(), options) is options

"""Low-rank inputs of a graph: nothing changes without them, and with them it is the merged one."""

from __future__ import annotations

import math
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import eri_runtime as eri
from eri_export.gate.pytorch_reference import reference, run
from eri_export.graphs.passes.lora_inputs import add_lora_inputs
from eri_export.graphs.step_graph import compose
from eri_export.graphs.weight_names import file_names
from eri_export.plan.plan import make_plan
from eri_runtime.bundle.spec import LORA_A, LORA_B, LORAS, RANK

FAMILIES = ["sdxl", "sd35", "flux"]
ROWS = 3
RANKS = 4


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    """A family's recipe, its plain graph, the same with inputs for LoRAs, and what they are."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))
    plan = make_plan(request.getfixturevalue(f"{request.param}_checkpoint"))
    (recipe,) = (each for each in plan.recipes if each.name == "denoiser")
    plain = bundle.path(bundle.components["denoiser"].graph)
    model = ir.load(plain)
    specs = add_lora_inputs(model)
    folder = tmp_path_factory.mktemp("lora")
    shutil.copy(plain.with_name("weights.safetensors"), folder)
    ir.save(model, folder / "model.onnx")
    return recipe, session(plain), session(folder / "model.onnx"), specs


def session(path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def drawn(specs, loras, rank=RANKS, gain=0.5, seed=0):
    """Products whose gain is about `gain`."""
    rng = np.random.default_rng(seed)
    sizes = {LORAS: loras, RANK: rank}
    arrays = {}
    for spec in specs:
        shape = tuple(sizes.get(size, size) for size in spec.shape)
        scale = (1 if spec.name.startswith(LORA_A) else gain) / math.sqrt(shape[1])
        arrays[spec.name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return arrays


def inputs_of(recipe, rows=ROWS):
    """Drawn ones; of a clock near 1000, engines differ by 1e-5 in the sinusoids alone."""
    smallest = {name: each.min for name, each in recipe.ranges.items()}
    inputs = recipe.sample({**smallest, "batch": rows}, seed=1)
    small = {name: inputs[name] / 256 for name in ("timestep", "guidance") if name in inputs}
    return {**inputs, **small}


def rows_of(recipe, inputs, row):
    """One row of what has rows."""
    batched = {each.spec.name for each in recipe.inputs if each.spec.shape[0] == "batch"}
    return {k: v[row : row + 1] if k in batched else v for k, v in inputs.items()}


def outputs(graph, inputs):
    (made,) = graph.run(["output"], dict(inputs))
    return made


def close(ours, expected, tolerance):
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def merged(recipe, arrays, row):
    """PyTorch with one row's products added to its weights."""
    wrapper = reference(recipe)
    names = file_names(wrapper.network, recipe.source)
    state = wrapper.network.state_dict()
    count = 0
    for name, stored in names.items():
        if LORA_A + stored not in arrays:
            continue
        down, up = (arrays[prefix + stored][row] for prefix in (LORA_A, LORA_B))
        state[name] += torch.from_numpy((down @ up).T)
        count += 1
    assert count == len(arrays) // 2 > 0
    return wrapper


def test_every_linear_layer_has_two_inputs(subject):
    recipe, _, with_loras, specs = subject
    with torch.device("meta"):
        network = recipe.build()
    names = file_names(network, recipe.source)
    layers = {
        names[f"{path}.weight"]: tuple(module.weight.shape)
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    downs = {s.name: s.shape for s in specs if s.name.startswith(LORA_A)}
    ups = {s.name: s.shape for s in specs if s.name.startswith(LORA_B)}
    assert downs == {LORA_A + name: (LORAS, width, RANK) for name, (_, width) in layers.items()}
    assert ups == {LORA_B + name: (LORAS, RANK, out) for name, (out, _) in layers.items()}
    given = {each.name: tuple(each.shape) for each in with_loras.get_inputs()}
    assert given == {each.spec.name: given[each.spec.name] for each in recipe.inputs} | downs | ups


@pytest.mark.parametrize("loras", [1, ROWS])
def test_zeros_change_nothing(subject, loras):
    recipe, plain, with_loras, specs = subject
    inputs = inputs_of(recipe)
    zeros = {name: np.zeros_like(value) for name, value in drawn(specs, loras).items()}
    close(outputs(with_loras, {**inputs, **zeros}), outputs(plain, inputs), 1e-6)


def test_one_for_all_is_pytorch_with_merged_weights(subject):
    recipe, plain, with_loras, specs = subject
    inputs, arrays = inputs_of(recipe), drawn(specs, 1)
    ours = outputs(with_loras, {**inputs, **arrays})
    expected = run(recipe, merged(recipe, arrays, 0), inputs)["output"]
    close(ours, expected, 1e-5)
    assert np.abs(ours - outputs(plain, inputs)).max() > 0.1 * np.abs(expected).max()


def test_each_row_has_its_own(subject):
    recipe, _, with_loras, specs = subject
    inputs, arrays = inputs_of(recipe), drawn(specs, ROWS, seed=2)
    arrays = {name: value * np.float32([[[1]], [[0]], [[-0.7]]]) for name, value in arrays.items()}
    together = outputs(with_loras, {**inputs, **arrays})
    for row in range(ROWS):
        alone = rows_of(recipe, inputs, row)
        own = {name: value[row : row + 1] for name, value in arrays.items()}
        close(together[row : row + 1], outputs(with_loras, {**alone, **own}), 1e-5)
        expected = run(recipe, merged(recipe, arrays, row), alone)["output"]
        close(together[row : row + 1], expected, 1e-5)


def test_rank_is_open(subject):
    """Zeros beyond a rank, as other ranks beside it in a batch need them, change nothing."""
    recipe, _, with_loras, specs = subject
    inputs, arrays = inputs_of(recipe), drawn(specs, 1, rank=2)
    wide = {
        name: np.pad(value, [(0, 0), (0, 5 * (s.shape[1] == RANK)), (0, 5 * (s.shape[2] == RANK))])
        for (name, value), s in zip(arrays.items(), specs, strict=True)
    }
    close(outputs(with_loras, {**inputs, **wide}), outputs(with_loras, {**inputs, **arrays}), 1e-5)


def test_weights_and_step_graph(subject):
    _, plain, with_loras, specs = subject
    before, after = ir.load(plain._model_path), ir.load(with_loras._model_path)
    weights = [
        {
            name: (v.const_value.offset, v.const_value.length)
            for name, v in model.graph.initializers.items()
            if isinstance(v.const_value, ir.ExternalTensor)
        }
        for model in (before, after)
    ]
    assert weights[0] == weights[1] != {}
    names = [output.name for node in after.graph for output in node.outputs]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(with_loras._model_path, full_check=True)
    compose(after)
    given = [value.name for value in after.graph.inputs]
    assert given[7:][-len(specs) :] == [spec.name for spec in specs]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.FLOAT])
def test_a_toy_by_hand(dtype):
    """A Gemm, a MatMul with a bias, a weight used twice, an embedding: all but the last."""
    kind = {ir.DataType.FLOAT16: "float16", ir.DataType.FLOAT: "float"}[dtype]
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        toy ({kind}[b, 3] v, {kind}[b, s, 3] x, int64[b] ids,
             {kind}[2, 3] W, {kind}[2, 3] U, {kind}[5, 3] E, {kind}[2] bias)
            => ({kind}[b, 2] one, {kind}[b, s, 2] two)
        {{
            g = Gather (E, ids)
            vg = Add (v, g)
            one = Gemm <transB = 1> (vg, W, bias)
            wt = Transpose <perm = [1, 0]> (W)
            ut = Transpose <perm = [1, 0]> (U)
            y = MatMul (x, wt)
            z = MatMul (x, ut)
            zb = Add (bias, z)
            two = Add (y, zb)
        }}
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    wide = np.float16 if kind == "float16" else np.float32
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.integers(-3, 4, shape).astype(wide)  # exact in sixteen bits

    weights = {"W": draw(2, 3), "U": draw(2, 3), "E": draw(5, 3), "bias": draw(2)}
    for value in model.graph.inputs[3:]:
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
    specs = add_lora_inputs(model, {RANK: 2})
    assert [spec.name for spec in specs] == ["lora_A.W", "lora_B.W", "lora_A.U", "lora_B.U"]
    for name, value in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(value)
    graph = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    assert graph.get_inputs()[3].shape == [LORAS, 3, 2]
    assert {each.type for each in graph.get_inputs()[3:]} == {"tensor(float)"}
    v, x, ids = draw(3, 3), draw(3, 4, 3), np.array([0, 4, 2])
    loras = {
        spec.name: draw(3, *(2 if size == RANK else size for size in spec.shape[1:])).astype("f")
        for spec in specs
    }
    one, two = graph.run(None, {"v": v, "x": x, "ids": ids, **loras})
    for row in range(3):
        w = weights["W"] + (loras["lora_A.W"][row] @ loras["lora_B.W"][row]).T
        u = weights["U"] + (loras["lora_A.U"][row] @ loras["lora_B.U"][row]).T
        vector = v[row] + weights["E"][ids[row]]
        np.testing.assert_array_equal(one[row], vector @ w.T + weights["bias"])
        np.testing.assert_array_equal(two[row], x[row] @ (w + u).T + weights["bias"])

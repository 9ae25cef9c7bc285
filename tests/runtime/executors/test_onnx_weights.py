"""Graphs whose external weights become inputs, as the onnx library reads them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import eri_runtime as eri
from eri_runtime.executors.onnx_weights import weights_as_inputs


def graphs(bundle):
    for spec in eri.read_bundle(bundle).components.values():
        for name in filter(None, (spec.graph, spec.step, *(each.graph for each in spec.segments))):
            yield bundle / name


def test_the_rest_of_a_graph_stays_as_it_is(sdxl_bundle):
    for file in graphs(sdxl_bundle):
        model = onnx.load(file, load_external_data=False)
        data, names = weights_as_inputs(file.read_bytes())
        found = onnx.load_from_string(data)
        external = [each for each in model.graph.initializer if each.external_data]
        assert names == [each.name for each in external]
        assert len(names) > 0
        inputs = {each.name: each.type.tensor_type for each in found.graph.input}
        for each in external:
            tensor = inputs.pop(each.name)
            assert tensor.elem_type == each.data_type
            assert [dim.dim_value for dim in tensor.shape.dim] == list(each.dims)
        assert list(inputs) == [each.name for each in model.graph.input]
        own = [each for each in model.graph.initializer if not each.external_data]
        assert list(found.graph.initializer) == own
        for message in (model, found):
            del message.graph.input[:], message.graph.initializer[:]
        assert found == model


@pytest.mark.parametrize("packed", [True, False])
def test_shapes_are_read_packed_and_not(packed):
    """A protobuf writer may store a list of numbers in either way."""
    weight = numpy_helper.from_array(np.zeros((300, 2), np.float16), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.safetensors")
    graph = helper.make_graph([], "graph", [], [], [weight])
    plain = helper.make_model(graph).SerializeToString()
    dims = b"\x08\xac\x02\x08\x02", b"\x0a\x03\xac\x02\x02"
    assert plain.count(dims[0]) == 1
    data, names = weights_as_inputs(plain.replace(*dims) if packed else plain)
    (found,) = onnx.load_from_string(data).graph.input
    assert names == ["w"]
    assert [dim.dim_value for dim in found.type.tensor_type.shape.dim] == [300, 2]
    assert found.type.tensor_type.elem_type == TensorProto.FLOAT16


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\x80", b"\x3f\x00", b"\x38\x01"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError, match="damaged protobuf"):
        weights_as_inputs(data)

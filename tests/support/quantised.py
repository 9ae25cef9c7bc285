"""Quantised files of every kind, and what their weights are by each format's own formula.

Every writer returns the tensors of the file and the float32 values that they stand for. The values
are computed here from the formula, a loop where the exporter has index arithmetic, so that neither
checks itself. `test_quantised_oracles.py` compares both with the packages that define the formats.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.single_file_keys import State

Made = tuple[State, State]  # the tensors of a file, and the values of its weights

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = torch.cat([E2M1, -E2M1])
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


def is_matrix(name: str, tensor: Tensor) -> bool:
    """What the tools quantise: the weights of linear layers."""
    return name.endswith(".weight") and tensor.dim() == 2 and "embedding" not in name


def layers(state: State, quantise: Callable[[str, Tensor], Made], size: int = 1) -> Made:
    """A file whose matrices with rows of a multiple of `size` are quantised, layer by layer."""
    file, values = {}, {}
    for name, tensor in state.items():
        if is_matrix(name, tensor) and tensor.shape[1] % size == 0:
            stored, meant = quantise(name.removesuffix(".weight"), tensor.float())
            file |= stored
            values |= meant
        else:
            file[name] = values[name] = tensor
    return file, values


def scaled(layer: str, weight: Tensor, scale_name: str, dtype=torch.float8_e4m3fn) -> Made:
    """A layer in fp8 with one scale."""
    scale = weight.abs().max() / torch.finfo(dtype).max
    q = (weight / scale).to(dtype)
    stored = {f"{layer}.weight": q, f"{layer}.{scale_name}": scale}
    return stored, {f"{layer}.weight": q.float() * scale}


def old_fp8(state: State, prefix: str = "") -> Made:
    """As ComfyUI saved it until 2025: a marker, and scales of weights and of inputs."""

    def quantise(layer: str, weight: Tensor) -> Made:
        stored, values = scaled(layer, weight, "scale_weight")
        return {**stored, f"{layer}.scale_input": torch.tensor(0.7)}, values

    file, values = layers(state, quantise)
    return {**file, f"{prefix}scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, values


def described(form: str, **options: Any) -> Tensor:
    """A layer's format, as ComfyUI writes it beside the layer."""
    text = json.dumps({"format": form, **options}).encode()
    return torch.tensor(list(text), dtype=torch.uint8)


def comfy(state: State, form: str) -> Made:
    """As ComfyUI saves it now: each layer says what it is."""
    quantise, size, options = COMFY[form]

    def layer_of(layer: str, weight: Tensor) -> Made:
        stored, values = quantise(layer, weight)
        kind = form.removesuffix(" rotated")
        return {**stored, f"{layer}.comfy_quant": described(kind, **options)}, values

    return layers(state, layer_of, size)


def fp8(layer: str, weight: Tensor) -> Made:
    stored, values = scaled(layer, weight, "weight_scale")
    return {**stored, f"{layer}.input_scale": torch.tensor([0.3])}, values


def fp8_e5m2(layer: str, weight: Tensor) -> Made:
    return scaled(layer, weight, "weight_scale", torch.float8_e5m2)


def int8(layer: str, weight: Tensor) -> Made:
    """A scale a row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    q = (weight / scale).round().to(torch.int8)
    stored = {f"{layer}.weight": q, f"{layer}.weight_scale": scale}
    return stored, {f"{layer}.weight": q.float() * scale}


ROTATED = 16


def rotated_int8(layer: str, weight: Tensor) -> Made:
    """Groups of columns rotated by a matrix whose 4x4 seed has -1 on its other diagonal."""
    seed = 1 - 2 * torch.eye(4).flip(1)
    matrix = torch.kron(seed, seed) / 4
    turned = weight.view(len(weight), -1, ROTATED) @ matrix
    stored, values = int8(layer, turned.reshape(weight.shape))
    back = values[f"{layer}.weight"].view(len(weight), -1, ROTATED) @ matrix.T
    return stored, {f"{layer}.weight": back.reshape(weight.shape)}


def tiled(scales: Tensor) -> Tensor:
    """Scales in cuBLAS's order: those of a tile's row r begin at 16 (r % 32) + 4 (r // 32)."""
    rows, columns = scales.shape
    across = -(-columns // 4)
    flat = torch.zeros(-(-rows // 128) * across * 512, dtype=scales.dtype)
    for r in range(rows):
        for c in range(columns):
            tile = (r // 128) * across + c // 4
            flat[tile * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4] = scales[r, c]
    return flat.view(-(-rows // 128) * 128, across * 4)


def mxfp8(layer: str, weight: Tensor) -> Made:
    blocks = weight.view(len(weight), -1, 32)
    peak = blocks.abs().amax(-1).clamp(min=1e-30) / 448
    exponents = torch.ceil(torch.log2(peak)).to(torch.int32) + 127
    scale = torch.exp2((exponents - 127).float())[..., None]
    q = (blocks / scale).to(torch.float8_e4m3fn)
    stored = {
        f"{layer}.weight": q.view(weight.shape),
        f"{layer}.weight_scale": tiled(exponents.to(torch.uint8)),
    }
    return stored, {f"{layer}.weight": (q.float() * scale).view(weight.shape)}


def nvfp4(layer: str, weight: Tensor) -> Made:
    whole = weight.abs().max() / (448 * 6)
    blocks = weight.view(len(weight), -1, 16)
    scales = (blocks.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    total = (whole * scales.float())[..., None]
    distance = ((blocks / total.clamp(min=1e-30))[..., None] - E2M1).abs()
    q = distance.argmin(-1).view(weight.shape)
    stored = {
        f"{layer}.weight": (q[:, ::2] * 16 + q[:, 1::2]).to(torch.uint8),
        f"{layer}.weight_scale": tiled(scales.view(torch.uint8)).view(torch.float8_e4m3fn),
        f"{layer}.weight_scale_2": whole,
    }
    return stored, {f"{layer}.weight": (E2M1[q].view(blocks.shape) * total).view(weight.shape)}


COMFY: Mapping[str, tuple[Callable[[str, Tensor], Made], int, dict[str, Any]]] = {
    "float8_e4m3fn": (fp8, 1, {"full_precision_matrix_mult": True}),
    "float8_e5m2": (fp8_e5m2, 1, {}),
    "mxfp8": (mxfp8, 32, {}),
    "nvfp4": (nvfp4, 16, {}),
    "int8_tensorwise": (int8, 1, {}),
    "int8_tensorwise rotated": (
        rotated_int8,
        ROTATED,
        {"convrot": True, "convrot_groupsize": ROTATED},
    ),
}


def nf4(layer: str, weight: Tensor, nested: bool = False, block: int = 64) -> Made:
    """As bitsandbytes saves it."""
    flat = weight.reshape(-1)
    absmax = torch.stack([part.abs().max() for part in flat.split(block)])
    scales, more, state = absmax, {}, {}
    name = f"{layer}.weight"
    if nested:
        table = torch.linspace(-1, 1, 256)
        offset = float(absmax.mean())
        peaks = torch.stack([(part - offset).abs().max() for part in absmax.split(256)])
        every = peaks.repeat_interleave(256)[: len(absmax)]
        scales = (((absmax - offset) / every)[:, None] - table).abs().argmin(1).to(torch.uint8)
        absmax = table[scales.long()] * every + torch.tensor(offset)
        more = {f"{name}.nested_absmax": peaks, f"{name}.nested_quant_map": table}
        state = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    every = absmax.repeat_interleave(block)[: len(flat)]
    q = ((flat / every)[:, None] - NF4).abs().argmin(1)
    padded = torch.cat([q, torch.zeros(len(q) % 2, dtype=q.dtype)])
    state |= {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16"}
    state["shape"] = list(weight.shape)
    stored = {
        name: (padded[::2] * 16 + padded[1::2]).to(torch.uint8)[:, None],
        f"{name}.absmax": scales,
        f"{name}.quant_map": NF4.clone(),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
        **more,
    }
    return stored, {name: (NF4[q] * every).view(weight.shape)}


def llm_int8(layer: str, weight: Tensor) -> Made:
    """As bitsandbytes saves a layer in 8 bits."""
    peaks = weight.abs().amax(1)
    q = (weight / peaks[:, None] * 127).round().to(torch.int8)
    stored = {
        f"{layer}.weight": q,
        f"{layer}.SCB": peaks,
        f"{layer}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return stored, {f"{layer}.weight": q * peaks[:, None] * 7.874015718698502e-3}


# GGUF

Block = tuple[int, tuple[int, ...], bytes]  # ggml's type, the sizes reversed, the data
KINDS = {"B": 0, "H": 2, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10}


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def setting(name: str, value: Any) -> bytes:
    """A text, a list of texts, a list of int32, or an unsigned number."""
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        body = b"".join(map(text, value))
        return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + body
    if isinstance(value, list):
        return text(name) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return text(name) + struct.pack("<II", 4, value)


def info(name: str, sizes: Iterable[int], kind: int, offset: int) -> bytes:
    sizes = tuple(sizes)
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def gguf_file(file: Path, tensors: Mapping[str, Block], settings: Mapping[str, Any]) -> Path:
    """A GGUF file, written by the format's description."""
    alignment = settings.get("general.alignment", 32)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(settings))]
    head += [setting(name, value) for name, value in settings.items()]
    position, data = 0, []
    for name, (kind, sizes, raw) in tensors.items():
        head.append(info(name, sizes, kind, position))
        data.append(raw + bytes(-len(raw) % alignment))
        position += len(data[-1])
    start = b"".join(head)
    file.write_bytes(start + bytes(-len(start) % alignment) + b"".join(data))
    return file


def gguf_block(tensor: Tensor, name: str) -> tuple[Block, Tensor]:
    """A tensor in one of ggml's types that `gguf` can quantise to, and its values by `gguf`."""
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    raw = gguf.quantize(np.ascontiguousarray(tensor.float().numpy()), kind)
    values = torch.from_numpy(np.array(gguf.dequantize(raw, kind))).view(tensor.shape)
    return (int(kind), tuple(reversed(tensor.shape)), raw.tobytes()), values


def gguf_state(state: State, kinds: Iterable[str]) -> tuple[dict[str, Block], State]:
    """Matrices in these types in turn, what they do not fit in F16, vectors in F32."""
    kinds = tuple(kinds)
    blocks, values = {}, {}
    for i, (name, tensor) in enumerate(state.items()):
        fits = is_matrix(name, tensor) and tensor.shape[1] % 32 == 0
        kind = kinds[i % len(kinds)] if fits else "F16" if tensor.dim() > 1 else "F32"
        blocks[name], values[name] = gguf_block(tensor, kind)
    return blocks, values


# Files at full size, which take no more disk than their headers


def _matrix(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(".weight") and len(shape) == 2


def sparse_scaled_fp8(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Matrices in fp8 with a scale each, the rest in bfloat16; all of it zeros."""
    header: dict[str, Any] = {}
    position = 0
    entries = [
        (name, "F8_E4M3" if _matrix(name, of) else "BF16", of) for name, of in shapes.items()
    ]
    matrices = [name for name, dtype, _ in entries if dtype == "F8_E4M3"]
    scales = [(name.replace(".weight", ".scale_weight"), "F32", ()) for name in matrices]
    for name, dtype, shape in [*entries, *scales, ("scaled_fp8", "F8_E4M3", (2,))]:
        end = position + math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return _sparse(file, len(text).to_bytes(8, "little") + text, position)


def sparse_gguf(file: Path, shapes: Mapping[str, tuple[int, ...]], kind: str) -> Path:
    """Matrices in one of ggml's types if their rows are whole blocks, else in F16; all zeros."""
    import gguf

    form = gguf.GGMLQuantizationType[kind]
    block, nbytes = gguf.GGML_QUANT_SIZES[form]
    infos, position = [], 0
    for name, shape in shapes.items():
        fits = _matrix(name, shape) and shape[-1] % block == 0
        infos.append(info(name, reversed(shape), int(form) if fits else 1, position))
        size = math.prod(shape) // block * nbytes if fits else 2 * math.prod(shape)
        position += size + -size % 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), 1)
    head += setting("general.architecture", "flux") + b"".join(infos)
    return _sparse(file, head + bytes(-len(head) % 32), position)


def _sparse(file: Path, head: bytes, size: int) -> Path:
    with file.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + size)
    return file

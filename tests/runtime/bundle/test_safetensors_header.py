"""The header of a safetensors file: read as the library reads it, and every damage named."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save

from eri_export.checkpoints.stored_tensors import read_header
from eri_runtime.bundle import safetensors_file as tensors
from eri_runtime.bundle import safetensors_header
from eri_runtime.errors import DamagedWeightsError, NotACheckpointError, PickleError
from tests.support.headers import NAMES, entry, listed, raw_file, refusal, written

# the library as the oracle

# What the library reads and we do not, by our own words for it: it keeps the last of two tensors
# of one name, passes over fields it does not know, and reads a struct from a list and an enum
# from an object, which no writer writes.
STRICTER = ("is given twice", "expected dtype", "got type {")

SIZES = st.one_of(
    st.integers(0, 3),
    st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30]),
    st.sampled_from([1.0, True, None, "1", [], float("inf")]),
)
TEXTS = st.one_of(st.sampled_from(NAMES), st.text(max_size=4))  # no lone surrogates
DTYPES = st.sampled_from([*safetensors_header.BITS, "F128", "f32", None, 4, {"F32": None}])


@st.composite
def sound(draw):
    """A header as it should be, and the bytes after it."""
    tensors, position = {}, 0
    for name in draw(st.lists(TEXTS, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(list(safetensors_header.BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        end = position + safetensors_header.BITS[dtype] * math.prod(shape) // 8
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    if draw(st.booleans()):
        tensors["__metadata__"] = draw(st.dictionaries(TEXTS, TEXTS, max_size=2) | st.none())
    return tensors, draw(st.binary(min_size=position, max_size=position))


@st.composite
def unsound(draw):
    """A header with one place changed to something else."""
    tensors, data = draw(sound())
    entries = [each for name, each in tensors.items() if name != "__metadata__"]
    if not entries or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([[], 1, None, {"a": []}, {"__metadata__": {"a": 1}}])), data
    broken = draw(st.sampled_from(entries))
    key = draw(st.sampled_from([*broken, "more"]))
    is_list = key in ("shape", "data_offsets")
    broken[key] = draw(st.lists(SIZES, max_size=3) | SIZES if is_list else DTYPES)
    if draw(st.booleans()):
        broken.pop(draw(st.sampled_from([*broken])))
    return tensors, data


TOKENS = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"-", b"0", b"1e9", b".0"]),
    st.sampled_from([b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"NaN", b" ", b"\n", b"\0", b"null"]),
)


@st.composite
def files(draw):
    """The bytes of a file: sound, unsound, or with some bytes put in, taken out or overwritten."""
    tensors, data = draw(sound() | sound() | unsound())
    separators = draw(st.sampled_from([(",", ":"), (", ", ":\n ")]))
    text = json.dumps(tensors, separators=separators, ensure_ascii=draw(st.booleans()))
    raw = raw_file(
        text.encode("utf-8", "surrogatepass") + draw(st.sampled_from([b"", b"  "])), data
    )
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        start = draw(st.integers(0, len(raw)))
        raw = raw[:start] + draw(TOKENS) + raw[start + draw(st.integers(0, 3)) :]
        if draw(st.booleans()):  # keep the length true, so that more than it is tried
            raw = raw_file(
                raw[8 : max(8, len(raw) - len(data))], raw[max(8, len(raw) - len(data)) :]
            )
    return raw


def library_reads(file):
    """Name -> (dtype, shape) by the library, or None where it refuses the file."""
    try:
        with safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError):
        return None


@given(files())
@example(raw_file(listed(entry(), entry())))
@example(raw_file('{"a":["F32",[1],[0,4]]}'))
@example(raw_file('{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}'))
@example(raw_file(listed(entry(more=',"more":-0.5'))))
@example(raw_file(listed(entry(shape="[-0]", offsets="[0,0]")), b""))
@example(raw_file(listed(entry(shape="[0,9223372036854775808,4]", offsets="[0,0]")), b""))
@example(raw_file(listed(entry(shape="[9223372036854775808,4,0]", offsets="[0,0]")), b""))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_is_read_as_the_library_reads_it(tmp_path, raw):
    file = written(tmp_path, raw)
    theirs = library_reads(file)
    try:
        ours = read_header(file)
    except (DamagedWeightsError, NotACheckpointError, PickleError) as error:
        refused_for = str(error)
    else:
        refused_for = None
    if refused_for is not None:
        assert theirs is None or any(reason in refused_for for reason in STRICTER)
        return
    assert {each.name: (each.dtype, list(each.shape)) for each in ours} == theirs
    data = {name: bytes(each["data"]) for name, each in deserialize(raw)}
    for each in ours:
        assert raw[each.start :][: each.nbytes] == data[each.name]


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"GGUF", b" <html"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_at_all(tmp_path, raw, head):
    file = written(tmp_path, head + raw)
    try:
        assert read_header(file) == () == tuple(library_reads(file))
    except (DamagedWeightsError, NotACheckpointError, PickleError):
        assert library_reads(file) is None


# files of which we know what is wrong


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (b"\1\0\0", "3 bytes"),
        (raw_file("{}", b"", length=2**63), "header of 9223372036854775808 bytes"),
        (raw_file("{}", b"", length=3), "header of 3 bytes"),
        (raw_file("[]", b""), "got list, expected an object"),
        (raw_file(b"\xff\xfe{\0}\0", b""), "decode"),
        (raw_file(b"\xef\xbb\xbf{}", b""), "BOM"),
        (raw_file("{}x", b""), "Extra data"),
        (raw_file("{}\0", b""), "Extra data"),
        (raw_file(listed(entry(more=',"shape":[1]'))), "'shape' is given twice"),
        (raw_file('{"__metadata__":{"x":1}}', b""), "__metadata__: got {'x': 1}"),
        (raw_file('{"__metadata__":[]}', b""), "__metadata__: got []"),
        (raw_file(listed(entry(shape="[-1]"))), "shape [-1.0]"),
        (raw_file(listed(entry(shape="[1.0]"))), "shape [1.0]"),
        (raw_file(listed(entry(shape="[18446744073709551616]"))), "expected lists of sizes"),
        (raw_file(listed(entry(shape="[true]"))), "shape [True]"),
        (raw_file(listed(entry(shape='["1"]'))), "shape ['1']"),
        (raw_file(listed(entry(shape=f"[{10**4000}]"))), "shape [inf]"),
        (raw_file(listed(entry(shape="[NaN]"))), "NaN is no JSON"),
        (raw_file(listed(entry(shape="[4294967296,4294967296]"))), "overflows"),
        (raw_file(listed(entry(shape=f"[{'2,' * 99999}2]"))), "overflows"),
        (raw_file(listed(entry(offsets="[4,0]"))), "got -4 bytes"),
        (raw_file(listed(entry(offsets="[4,8]")), b"\0" * 8), "at byte 4, expected 0"),
        (raw_file(listed(entry(offsets="[0,8]")), b"\0" * 8), "got 8 bytes"),
        (raw_file(listed(entry("a"), entry("b"))), "at byte 0, expected 4"),
        (raw_file(listed(entry()), b"\0" * 5), "take 4 bytes, the file holds 5"),
        (raw_file(listed(entry()), b"\0" * 3), "take 4 bytes, the file holds 3"),
        (raw_file(listed(entry(dtype="F128"))), "got type 'F128'"),
        (raw_file(listed(entry(dtype="F4"))), "got 4 bytes for F4 [1]"),
        (raw_file(listed(entry("\\ud800"))), "surrogates"),
        (raw_file(listed(entry("x" * 100_000, shape="1"))), "xxx...xxx"),
        (raw_file("[" * 1_000_000, b""), "recursion"),
        (raw_file('{"a":' * 1_000_000, b""), "recursion"),
        (raw_file(f'{{"a":{"[" * 900}{"]" * 900}}}', b""), "[[["),
    ],
)
def test_damage_is_named(tmp_path, raw, words):
    file = written(tmp_path, raw)
    assert words in refusal(file)
    assert library_reads(file) is None


def test_a_name_given_twice(tmp_path):
    """The library keeps the last of the two, other readers the first."""
    assert "'a' is given twice" in refusal(written(tmp_path, raw_file(listed(entry(), entry()))))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = save({"a": torch.ones(3), "b": torch.ones(2, 2)})
    assert len(read_header(written(tmp_path, whole))) == 2
    for kept in range(len(whole)):
        refusal(written(tmp_path, whole[:kept]))
    refusal(written(tmp_path, whole + b"\0"))


def test_a_header_is_never_longer_than_a_network_could_need(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((tensors.MAX_HEADER + 1).to_bytes(8, "little"))
        stream.truncate(200_000_000)
    assert "at most 25000000" in refusal(file)

"""Files of prompts: what each kind holds, and a line's number in every error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.batch.prompt_files import FIELDS, NAMES, read_prompts
from eri_runtime.errors import EriError, UnknownNameError, UsageError
from eri_runtime.request.jobs import Job

BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


def jobs(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(int(place.removeprefix(f"{path}:")), job) for place, job in read_prompts(path)]


@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_has_a_prompt_a_line(folder, bom, end):
    text = end.join(["a red heart", "", "  # no prompt", "# nor this", " 心, \u2028 # x", "  "])
    found = jobs(folder, "p.TXT", bom + text.encode())
    assert found == [(1, Job("a red heart")), (5, Job("心, \u2028 # x"))]


def test_json_has_the_words_of_a_job_or_of_the_command_line(folder):
    full = Job("a", "b", 0, 1.0, 2.0, 32, 48, 3, "euler")
    short = {"prompt": "a", "negative": "b", "seed": 0, "guidance": 1, "true_cfg": 2}
    short |= {"size": "48x32", "steps": 3, "sampler": "euler"}
    lines = [json.dumps(vars(full)), "", json.dumps(short), '{"prompt": "", "seed": null}\r']
    expected = [(1, full), (3, full), (4, Job(""))]
    assert jobs(folder, "p.jsonl", BOM + "\n".join(lines).encode()) == expected


def test_a_table_has_a_name_a_column(folder):
    text = 'prompt , negative,seed,guidance,size,steps\r\n"a, ""b""\nc",,0,1.5,48x32,\r\n\n,,,,,\n'
    text += "d, blurry ,,,,7"
    first = Job('a, "b"\nc', seed=0, guidance_scale=1.5, height=32, width=48)
    last = Job("d", "blurry", num_inference_steps=7)
    assert jobs(folder, "p.csv", BOM + text.encode()) == [(2, first), (6, last)]


BAD = [
    ("p.txt", b"", "p.txt: got no prompts, expected one or more"),
    ("p.txt", BOM + b"# only\n\n", "no prompts"),
    ("p.csv", b"prompt\n", "no prompts"),
    ("p.txt", b"a\nb\xff\n", r"p.txt:2: got the byte 0xff, expected UTF-8"),
    ("p.yaml", b"a", "expected a .txt, .jsonl or .csv file"),
    ("p.jsonl", b'{"prompt": "a"}\n{"prompt": }', "p.jsonl:2: JSON: got"),
    ("p.jsonl", b'"a"', r"p.jsonl:1: JSON: got 'a', expected an object"),
    ("p.jsonl", b"[]", r"p.jsonl:1: JSON: got \[\], expected an object"),
    ("p.jsonl", b'[["prompt", "a"]]', "p.jsonl:1: JSON"),
    ("p.jsonl", b"[" * 100_000, "p.jsonl:1: JSON: got"),
    ("p.jsonl", b'{"prompt": "a", "seed": %s}' % (b"9" * 5000), "p.jsonl:1: "),
    ("p.jsonl", b'{"seed": 1}', "p.jsonl:1: prompt: got none, expected a text"),
    ("p.jsonl", b'{"prompt": 1}', "p.jsonl:1: prompt: got 1"),
    ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "p.jsonl:1: prompt: got given twice"),
    ("p.jsonl", b'{"prompt": "a", "steps": 1, "num_inference_steps": 1}', "num_inf.*twice"),
    ("p.jsonl", b'{"prompt": "a", "size": "8x8", "width": 8}', "width: got given twice"),
    ("p.jsonl", b'{"prompt": "a", "size": 8}', "p.jsonl:1: size: got 8, expected WIDTHxHEIGHT"),
    ("p.jsonl", b'{"prompt": "a", "size": "%sx8"}' % (b"9" * 5000), "p.jsonl:1: size: got"),
    ("p.jsonl", b'{"prompt": "a", "sampler": 1}', "p.jsonl:1: sampler: got 1"),
    ("p.jsonl", b'{"prompt": "\\ud800"}', "p.jsonl:1: prompt: .*surrogates"),
    ("p.jsonl", b'{"prompt": "a", "guidance": NaN}', "p.jsonl:1: guidance_scale: got nan"),
    ("p.jsonl", b'{"prompt": "a", "seed": 1.0}', "p.jsonl:1: seed: got 1.0"),
    ("p.csv", b"seed\n1\n", "p.csv:2: prompt: got none"),
    ("p.csv", b"prompt,seed\na,1\nb\n", "p.csv:3: row: got 1 cells, expected 2"),
    ("p.csv", b"prompt,seed\na,1_0\n", "p.csv:2: seed: got '1_0', expected an integer"),
    ("p.csv", b"prompt,guidance\na,much\n", "guidance_scale: got 'much', expected a number"),
    ("p.csv", b"prompt,guidance\na,inf\n", "p.csv:2: guidance_scale: got inf"),
    ("p.csv", b"prompt,negative,negative_prompt\n", "p.csv:1: negative_prompt: got given twice"),
    ("p.csv", b'prompt\n\n"a\nb', "p.csv:3: got unexpected end of data"),
]


@pytest.mark.parametrize(("name", "content", "match"), BAD)
def test_an_error_names_the_line(folder, name, content, match):
    with pytest.raises(UsageError, match=match):
        jobs(folder, name, content)


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.jsonl", b'{"prompt": "a"}\n{"promt": "a"}'), ("p.csv", b"promt,seed\na,1\n")],
)
def test_an_unknown_name_has_a_near_one(folder, name, content):
    number = 2 if name == "p.jsonl" else 1
    with pytest.raises(UnknownNameError, match=f":{number}: .*did you mean prompt") as caught:
        jobs(folder, name, content)
    assert all(field in str(caught.value) for field in FIELDS)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UsageError, match=r"^--prompts: got "):
            read_prompts(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each),
    max_leaves=5,
)
objects = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), values, max_size=5)
tables = st.lists(st.lists(st.sampled_from([*NAMES, "1", '"', "a\0", "8x8"]) | st.text()))
hostile = st.one_of(
    st.binary(max_size=200),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(objects).map(lambda many: "\n".join(map(json.dumps, many)).encode()),
    tables.map(lambda rows: "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")),
)


def outcome(folder, name, content):
    try:
        return jobs(folder, name, content)
    except EriError as error:
        return error


@given(st.sampled_from(["h.txt", "h.jsonl", "h.csv"]), hostile)
def test_any_bytes_are_jobs_or_an_error_that_names_the_file(folder, name, content):
    found = outcome(folder, name, content)
    if isinstance(found, EriError):
        assert str(folder / name) in str(found)
        return
    assert found
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    assert all(job == Job(**vars(job)) for _, job in found)

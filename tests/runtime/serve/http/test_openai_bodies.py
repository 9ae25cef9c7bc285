"""Bodies that clients send, those of Open WebUI and SillyTavern among them, and hostile ones."""

from __future__ import annotations

import json

import pytest

from eri_runtime.errors import LoraError
from eri_runtime.serve import EngineOptions, Limits
from tests.support.fake_engine import FakeEngine, failing
from tests.support.http_pictures import hole, opened, png

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
JSON = {"content-type": "application/json"}


def error_of(reply):
    """The members of a reply's error object."""
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_open_webui_generates(client, engine):
    """It takes every data[].b64_json, or data[].url with the same headers."""
    body = {"model": "tiny", "prompt": "a fox", "n": 2, "size": "64x64"}
    headers = {"Authorization": "Bearer anything", **JSON}
    reply = client.post(
        GENERATIONS + "?api-version=1",
        headers=headers,
        json={**body, "response_format": "b64_json"},
    )
    assert [opened(each["b64_json"]).size for each in reply.json()["data"]] == [(64, 64)] * 2
    reply = client.post(GENERATIONS, headers=headers, json={**body, "response_format": "url"})
    for each in reply.json()["data"]:
        picture = client.get(each["url"], headers=headers)
        assert picture.headers["content-type"].startswith("image/")
    assert engine.seen[0].words["width"] == 64


def test_open_webui_edits(client, engine):
    fields = {
        "model": "tiny",
        "prompt": "a fox",
        "n": "1",
        "size": "64x64",
        "background": "auto",
        "response_format": "b64_json",
    }
    files = {"image": ("image.png", png(), "image/png")}
    reply = client.post(EDITS, data=fields, files=files)
    assert opened(reply.json()["data"][0]["b64_json"]).size == (64, 64)
    several = [
        ("image[]", ("a.png", png(), "image/png")),
        ("image[]", ("b.png", png(), "image/png")),
    ]
    reply = client.post(EDITS, data=fields, files=several)
    assert reply.status_code == 400
    assert "one picture at a time" in error_of(reply)["message"]


def test_sillytavern_generates(client):
    body = {
        "prompt": "a fox",
        "model": "tiny",
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
        "quality": "standard",
        "style": "vivid",
        "moderation": "low",
    }
    assert opened(client.post(GENERATIONS, json=body).json()["data"][0]["b64_json"]).size == (
        64,
        64,
    )


def test_fields_without_effect_and_nulls_are_accepted(client, engine):
    ignored = ("background", "quality", "moderation", "style", "user", "safety_identifier")
    nulls = dict.fromkeys(("n", "size", "seed", "steps", "loras", "stream", "output_format"))
    reply = client.post(GENERATIONS, json={"prompt": "a", **dict.fromkeys(ignored, "low"), **nulls})
    assert reply.status_code == 200
    assert reply.json()["quality"] == "low"
    assert engine.seen[0].words == {}


@pytest.mark.parametrize(("form", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format_carries_its_parameters(client, form, kind):
    body = {"prompt": "a fox, 狐", "output_format": form, "output_compression": 60}
    picture = opened(client.post(GENERATIONS, json=body).json()["data"][0]["b64_json"])
    assert picture.format == kind
    if form == "png":
        text = picture.text["parameters"]
    else:
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        text = comment[8:].decode("utf-16-be")
    assert text.startswith("a fox, 狐\nSteps: 4")


def test_a_text_too_long_for_jpeg_is_left_out(client):
    body = {"prompt": "x" * 32_000, "output_format": "jpeg"}
    picture = opened(client.post(GENERATIONS, json=body).json()["data"][0]["b64_json"])
    assert not picture.getexif().get_ifd(0x8769)


def test_compression_makes_files_smaller(client):
    def size(compression):
        body = {"prompt": "a", "output_format": "webp", "output_compression": compression}
        return len(client.post(GENERATIONS, json=body).json()["data"][0]["b64_json"])

    assert size(0) <= size(100)


def test_other_names_of_fields_mean_the_same(client, engine):
    bodies = ({"steps": 2, "guidance_scale": 3}, {"num_inference_steps": 2, "cfg_scale": 3.0})
    for body in (*bodies, {**bodies[0], **bodies[1], "seed": -1, "size": "auto"}):
        assert client.post(GENERATIONS, json={"prompt": "a", **body}).status_code == 200
    expected = {"num_inference_steps": 2, "guidance_scale": 3.0}
    assert [each.words for each in engine.seen] == [expected] * 3
    reply = client.post(GENERATIONS, json={"prompt": "a", "steps": 2, "num_inference_steps": 3})
    assert error_of(reply)["param"] == "steps"


def test_a_deadline_comes_from_the_body_the_header_or_the_engine(client, engine):
    def timeout(headers, **more):
        client.post(GENERATIONS, json={"prompt": "a", **more}, headers=headers)
        return engine.seen[-1].timeout

    header = {"X-Request-Timeout": "7.5"}
    assert [timeout({}), timeout(header), timeout(header, timeout=3)] == [None, 7.5, 3]
    for bad in ("0", "-1", "nan", "inf", "soon", "1e999"):
        reply = client.post(GENERATIONS, json={"prompt": "a"}, headers={"X-Request-Timeout": bad})
        assert (reply.status_code, error_of(reply)["param"]) == (400, "x-request-timeout")


def test_a_deadline_is_kept(client, engine):
    engine.delay = 5
    reply = client.post(GENERATIONS, json={"prompt": "a"}, headers={"X-Request-Timeout": "0.05"})
    assert (reply.status_code, error_of(reply)["code"]) == (504, "deadline_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    assert engine.outcomes == ["late"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"prompt"',
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "guidance_scale": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "seed": 1.5}',
        b'{"prompt": "a", "n": true, "steps": "many"}',
        b'{"prompt": "a", "sigmas": [1, NaN]}',
        b'{"prompt": "a", "sigmas": [[1]]}',
        b'{"prompt": "a", "sigmas": {"x": 1}}',
        b'{"prompt": "a", "loras": {"../../etc/passwd": 1}}',
        b'{"prompt": "a", "loras": ["/etc/passwd"]}',
        b'{"prompt": "a", "loras": [{"x": 1}]}',
        b'{"prompt": "a", "image": "/etc/passwd"}',
        b'{"prompt": "a", "words": {"noise": 1}}',
        b'{"prompt": "a", "output_type": "np"}',
        b'{"prompt": "a", "size": "99999x99999999"}',
        b'{"prompt": "a", "timeout": -1}',
        b'{"prompt": "a", "partial_images": 4}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": ["a", "b"]}',
        b'{"prompt": "a", "steps": 151}',
    ],
)
def test_a_hostile_body_is_a_typed_400(client, engine, body):
    reply = client.post(GENERATIONS, content=body, headers=JSON)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["type"] == "invalid_request_error"
    assert len(reply.content) < 3000
    assert not engine.seen


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_of_another_type_is_refused(client, kind):
    """A page of another site can send these without asking."""
    headers = {} if kind is None else {"content-type": kind}
    reply = client.post(GENERATIONS, content=b'{"prompt": "a"}', headers=headers)
    assert reply.status_code == 400
    assert error_of(reply)["code"] == "invalid_value"


def edit(client, files, **fields):
    return client.post(EDITS, data={"prompt": "a", **fields}, files=files)


@pytest.mark.parametrize(
    ("files", "param"),
    [
        ({}, "image"),
        ({"image": ("a.png", b"", "image/png")}, "image"),
        ({"image": ("a.png", b"\x89PNG\r\n\x1a\n" + b"x" * 99, "image/png")}, "image"),
        ({"image": ("a.png", png()[:-30], "image/png")}, "image"),
        ({"image": ("a.svg", b"<svg/>", "image/svg+xml")}, "image"),
        ({"image": ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/png")}, "image"),
        ({"image": ("a.tif", png(form="TIFF"), "image/tiff")}, "image"),
        ({"image": ("a.png", png(mode="I;16", colour=9), "image/png")}, "image"),
        ({"image": ("a.png", png()), "mask": ("m.png", b"mask")}, "mask"),
        ({"image": ("a.png", png()), "other": ("m.png", png())}, "'other'"),
        ({"mask": ("m.png", png())}, "image"),
    ],
)
def test_a_hostile_picture_is_a_typed_400(client, engine, files, param):
    reply = edit(client, files)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    assert not engine.seen


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "/etc/passwd"},
        {"strength": "2"},
        {"n": ["1", "2"]},
        {"sigmas": "[1, NaN]"},
        {"sigmas": "[1"},
        {"loras": '{"x": {}}'},
        {"loras[x][y]": "1"},
        {"strange": "1"},
        {"x" * 100_000: "1"},
        {"seed": "9" * 5000},
    ],
)
def test_a_hostile_form_is_a_typed_400(client, engine, fields):
    reply = edit(client, {"image": ("a.png", png())}, **fields)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["type"] == "invalid_request_error"
    assert not engine.seen


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x"),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"prompt=a", "application/x-www-form-urlencoded"),
        (b"%ff=%zz&&==", "application/x-www-form-urlencoded"),
        (b'{"prompt": "a"}', "application/json"),
        (b"a", "\xff; \x00"),
    ],
)
def test_a_damaged_form_is_a_typed_400(client, content, kind):
    headers = {"content-type": kind.encode("latin-1")}
    reply = client.post(EDITS, content=content, headers=headers)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["type"] == "invalid_request_error"


def test_a_mask_without_transparency_is_white_where_to_repaint(client, engine):
    files = {"image": ("a.png", png()), "mask": ("m.png", png(mode="L", colour=255))}
    assert edit(client, files).status_code == 200
    words = engine.seen[0].words
    assert words["mask"].getextrema() == (255, 255)
    assert (words["strength"], words["overlay"]) == (1.0, True)


def test_an_edit_has_the_pictures_proportions_or_the_size_it_names(client, engine):
    def size(picture, **fields):
        assert edit(client, {"image": ("a.png", png(picture))}, **fields).status_code == 200
        words = engine.seen[-1].words
        return words.get("width"), words.get("height")

    assert size((32, 32)) == (32, 32)
    assert size((640, 640)) == (64, 64)
    assert size((41, 33)) == (48, 32)
    assert size((4000, 10)) == (512, 16)
    assert size((1, 1)) == (16, 16)
    assert size((640, 640), size="128x64") == (128, 64)
    assert size((640, 640), padding_mask_crop="8") == (None, None)


def test_a_lora_that_does_not_fit_names_no_path():
    from fastapi.testclient import TestClient

    from eri_runtime.serve.http import make_app

    engine = failing(lambda: LoraError("/home/x/fox.safetensors", got="a", expected="b"))
    with TestClient(make_app(engine)) as client:
        reply = client.post(GENERATIONS, json={"prompt": "a"})
    assert reply.status_code == 400
    assert "/home" not in reply.text
    assert error_of(reply)["param"] == "loras"


def test_an_unforeseen_failure_is_a_typed_500_with_its_id(caplog):
    from fastapi.testclient import TestClient

    from eri_runtime.serve.http import make_app

    engine = failing(lambda: ZeroDivisionError("/home/secret"))
    with TestClient(make_app(engine)) as client:
        reply = client.post(GENERATIONS, json={"prompt": "a"}, headers={"x-request-id": "mine.1"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "mine.1")
    assert error_of(reply)["code"] == "internal_error"
    assert "secret" not in reply.text
    assert "mine.1" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_bodies_and_pictures_have_limits(client_of):
    engine = FakeEngine(options=EngineOptions(limits=Limits(body=20_000)))
    with client_of(engine, upload_pixels=100 * 100) as client:
        body = json.dumps({"prompt": "a" * 20_000})
        for content in (body, iter([body.encode()])):  # announced, and in chunks
            reply = client.post(GENERATIONS, content=content, headers=JSON)
            assert (reply.status_code, error_of(reply)["code"]) == (413, "body_too_large")
        files = {"image": ("a.png", png((101, 100)))}
        reply = edit(client, files)
        assert (reply.status_code, error_of(reply)["param"]) == (400, "image")
        assert "101x100" in reply.text
        reply = edit(client, {"image": ("a.png", b"x" * 30_000)})
        assert reply.status_code == 413
        assert edit(client, {"image": ("a.png", png((100, 100)))}).status_code == 200


def test_a_picture_of_many_pixels_in_few_bytes_is_never_decoded(client, engine):
    bomb = png((20_000, 20_000), 0, "1")
    assert len(bomb) < 100_000
    reply = edit(client, {"image": ("a.png", png()), "mask": ("m.png", bomb)})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "mask")
    assert not engine.seen


def test_an_edit_takes_openais_mask_in_a_form(client, engine):
    files = {"image": ("a.png", png()), "mask": ("m.png", hole())}
    assert edit(client, files, stream="true", partial_images="2").status_code == 200
    assert engine.seen[0].previews == 2

"""Pictures behind an address: how long and how many."""

from __future__ import annotations

from eri_runtime.serve.http import kept_pictures
from eri_runtime.serve.http.kept_pictures import KeptPictures

GENERATIONS = "/v1/images/generations"


def test_the_oldest_make_room():
    kept = KeptPictures(100)
    names = [kept.add(bytes([i]) * 40, "image/png") for i in range(4)]
    found = [kept.get(name) for name in names]
    assert [each and each.content[0] for each in found] == [None, None, 2, 3]


def test_the_newest_is_kept_whatever_its_size():
    kept = KeptPictures(10)
    name = kept.add(b"x" * 40, "image/webp")
    assert kept.get(name).media_type == "image/webp"
    assert kept.get(kept.add(b"y" * 5, "image/png")).content == b"y" * 5
    assert kept.get(name) is None


def test_a_picture_is_forgotten_after_its_time(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(kept_pictures, "monotonic", lambda: now)
    kept = KeptPictures(100, seconds=60)
    name = kept.add(b"x", "image/png")
    now += 59
    assert kept.get(name)
    now += 1
    assert kept.get(name) is None
    assert kept.get("other") is None


def test_a_server_that_keeps_none_refuses_before_it_draws(engine, client_of):
    with client_of(engine, kept_bytes=0) as client:
        body = {"prompt": "a", "response_format": "url"}
        reply = client.post(GENERATIONS, json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
        assert not engine.seen
        assert client.post(GENERATIONS, json={**body, "stream": True}).status_code == 200


def test_an_address_is_answered_with_its_own_type_only(client):
    for form in ("png", "jpeg"):
        body = {"prompt": "a", "response_format": "url", "output_format": form, "n": 2}
        for each in client.post(GENERATIONS, json=body).json()["data"]:
            reply = client.get(each["url"])
            assert reply.headers["content-type"] == f"image/{form}"
            assert reply.headers["x-content-type-options"] == "nosniff"
    for path in ("..%2f..%2fetc%2fpasswd", ".png", "x/../y"):
        assert client.get(f"/v1/images/files/{path}").status_code == 404

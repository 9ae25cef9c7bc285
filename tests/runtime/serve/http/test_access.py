"""Who may use the server: keys, origins, and paths that are open to all."""

from __future__ import annotations

import asyncio
import base64

import pytest

from eri_runtime.errors import UsageError
from eri_runtime.serve.http import ServerOptions, make_app

MODELS = "/v1/models"


def basic(pair):
    return "Basic " + base64.b64encode(pair.encode()).decode()


@pytest.fixture
def guarded(engine, client_of):
    with client_of(engine, api_keys=["first-key", "second-key"]) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [
        "Bearer first-key",
        "bearer second-key",
        "Bearer  first-key ",
        basic("anyone:second-key"),
        basic(":first-key"),
    ],
)
def test_a_key_opens(guarded, header):
    assert guarded.get(MODELS, headers={"authorization": header}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer first",
        "Bearer first-keyy",
        "Bearer first-key second-key",
        "first-key",
        "Digest first-key",
        "Basic first-key",
        "Basic \xff",
        basic("first-key"),
        basic("first-key:"),
        basic("a:first-key:"),
        "Bearer \xffirst-key",
    ],
)
def test_anything_else_is_a_typed_401(guarded, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    reply = guarded.get(MODELS, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert reply.headers["x-should-retry"] == "false"
    assert "first-key" not in reply.text


def test_every_path_but_a_few_needs_a_key(guarded):
    document = guarded.get("/openapi.json", headers={"authorization": "Bearer first-key"}).json()
    opened = set()
    for path, methods in document["paths"].items():
        for method in methods:
            reply = guarded.request(method, path.replace("{name}", "x"))
            if reply.status_code != 401:
                opened.add(path)
    assert opened == {"/health/live", "/health/ready", "/v1/images/files/{name}"}
    assert guarded.get("/openapi.json").status_code == 401


def test_a_body_without_a_key_is_not_read(engine):
    sent = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/images/generations", "headers": []}
    app = make_app(engine, ServerOptions(api_keys=["key"]))
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_keys_are_checked_and_never_shown():
    for key in ("", "two words", "schlüssel", "line\n"):
        with pytest.raises(UsageError) as caught:
            ServerOptions(api_keys=[key])
        assert not key or repr(key) not in str(caught.value)


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"api_keys": ["k"]}])  # noqa: S104
def test_a_page_of_another_site_is_refused(engine, client_of, options):
    evil = {"origin": "https://evil.example"}
    with client_of(engine, **options) as client:
        client.headers["authorization"] = "Bearer k"
        check_origins(client, evil)


def check_origins(client, evil):
    for headers, status in (
        ({}, 200),
        ({"origin": "http://testserver"}, 200),
        ({"origin": "https://testserver"}, 200),  # a proxy ends TLS
        (evil, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "https://eri.example", "x-forwarded-host": "eri.example"}, 200),
    ):
        reply = client.get(MODELS, headers=headers)
        assert reply.status_code == status, headers
        assert "access-control-allow-origin" not in reply.headers
    preflight = {**evil, "access-control-request-method": "POST"}
    reply = client.options("/v1/images/generations", headers=preflight)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden_origin")


def test_a_page_whose_name_leads_to_this_machine_is_refused(client):
    """Its origin looks like the server's own."""

    def status(host):
        headers = {"host": host, "origin": f"http://{host}"}
        return client.post("/v1/images/generations", json={"prompt": "a"}, headers=headers)

    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "eri.localhost"):
        assert status(host).status_code == 200, host
    for host in ("evil.example:8000", "localhost.evil.example", "192.168.0.1"):
        assert status(host).status_code == 403, host


def test_cors_lets_the_pages_in_that_it_names(engine, client_of):
    friend = {"origin": "https://friend.example"}
    with client_of(engine, cors=["https://friend.example"], api_keys=["k"]) as client:
        preflight = {**friend, "access-control-request-method": "POST"}
        reply = client.options("/v1/images/generations", headers=preflight)
        assert reply.status_code == 200, "asked for without a key"
        assert reply.headers["access-control-allow-origin"] == friend["origin"]
        reply = client.get(MODELS, headers={**friend, "authorization": "Bearer k"})
        assert reply.headers["access-control-allow-origin"] == friend["origin"]
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert client.get(MODELS, headers={"origin": "https://evil.example"}).status_code == 403
    with client_of(engine, cors=["*"]) as client:
        assert client.get(MODELS, headers={"origin": "https://evil.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["example.com", "https://example.com/", "https://", "", "http:/x"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(UsageError, match="cors"):
        ServerOptions(cors=[origin])


@pytest.mark.parametrize(
    "options",
    [{"port": 65536}, {"port": -1}, {"grace": -1}, {"upload_pixels": 0}, {"kept_bytes": -1}],
)
def test_options_are_checked(options):
    with pytest.raises(UsageError):
        ServerOptions(**options)


def test_unknown_paths_and_methods_are_typed(client):
    reply = client.get("/v1/nothing")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    reply = client.get("/v1/images/generations")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    reply = client.get("/sdapi/v1/nothing")
    assert set(reply.json()) == {"error", "detail", "body", "errors"}


def test_a_request_id_is_the_clients_if_it_is_plain(client):
    def given(name):
        return client.get("/health/live", headers={"x-request-id": name}).headers["x-request-id"]

    assert given("abc-1.2_3") == "abc-1.2_3"
    for bad in ("a" * 65, "a b", "<script>", ""):
        assert given(bad).startswith("req_")
    assert given("") != given("")

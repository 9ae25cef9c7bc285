"""What an operator decides about the HTTP server: where it listens, keys, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from eri_runtime.checks import integer, not_negative
from eri_runtime.errors import UsageError, short

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the HTTP server.

    Attributes:
        host: Address to listen on. Default: this machine only.
        port: Port to listen on; 0 takes a free one.
        api_keys: Keys of which a client must send one. Default: none, everyone may use the server.
        cors: Origins of pages that browsers let use the server, such as `https://example.com`, or
            `*` for all. Default: only the server's own page.
        grace: Seconds that accepted requests get when the server stops.
        upload_pixels: Most pixels of a picture that a client sends.
        kept_bytes: Bytes of pictures that are kept for clients that ask for a URL; the oldest go
            first. With 0, such requests are refused.
        title: Name of the server in its OpenAPI document.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Sequence[str] = ()
    cors: Sequence[str] = ()
    grace: float = 30.0
    upload_pixels: int = 2**25
    kept_bytes: int = 256 * MEBIBYTE
    title: str = "eri"

    def __post_init__(self) -> None:
        integer("port", self.port, 0, 65535)
        integer("upload_pixels", self.upload_pixels, 1)
        integer("kept_bytes", self.kept_bytes, 0)
        not_negative("grace", self.grace)
        for key in self.api_keys:
            if not (key and key.isascii() and key.isprintable()) or " " in key:
                raise UsageError(
                    "api_keys",
                    got=f"a key of {len(key)} characters",  # never the key itself
                    expected="printable ASCII characters without spaces",
                )
        for origin in self.cors:
            _check_origin(origin)


def _check_origin(origin: str) -> None:
    """Raises `UsageError` unless a text is `*` or `SCHEME://HOST[:PORT]`."""
    parts = urlsplit(origin)
    if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
        expected = "an origin such as https://example.com, without a path, or *"
        raise UsageError("cors", got=short(origin), expected=expected)


DEFAULT_SERVER = ServerOptions()

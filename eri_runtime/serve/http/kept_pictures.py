"""Pictures that are kept for clients that ask for a URL instead of base64."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from secrets import token_urlsafe
from time import monotonic

from eri_runtime.errors import UsageError

HOUR = 3600.0


@dataclass(frozen=True)
class KeptPicture:
    """A file in memory.

    Attributes:
        content: Its bytes.
        media_type: Its type, such as `image/png`.
        until: When it is forgotten, on the clock of `time.monotonic`.
    """

    content: bytes
    media_type: str
    until: float


class KeptPictures:
    """Keeps pictures for an hour, in a limited number of bytes, under names nobody can guess."""

    def __init__(self, most: int, seconds: float = HOUR) -> None:
        self._most = most
        self._seconds = seconds
        self._kept: OrderedDict[str, KeptPicture] = OrderedDict()
        self._size = 0

    def check(self) -> None:
        """Raises `UsageError` if pictures are not kept."""
        if not self._most:
            expected, fix = "b64_json", "this server keeps no pictures"
            raise UsageError("response_format", got="url", expected=expected, fix=fix)

    def add(self, content: bytes, media_type: str) -> str:
        """Keeps a picture and returns its name; the oldest are forgotten to make room."""
        name = token_urlsafe(24)
        self._kept[name] = KeptPicture(content, media_type, monotonic() + self._seconds)
        self._size += len(content)
        self._forget()
        return name

    def get(self, name: str) -> KeptPicture | None:
        """Returns a picture, or None if it is unknown or forgotten."""
        self._forget()
        return self._kept.get(name)

    def _forget(self) -> None:
        """Forgets what is too old, and the oldest above the limit; keeps the newest."""
        while self._kept:
            oldest = next(iter(self._kept.values()))
            too_much = self._size > self._most and len(self._kept) > 1
            if oldest.until > monotonic() and not too_much:
                return
            self._kept.popitem(last=False)
            self._size -= len(oldest.content)

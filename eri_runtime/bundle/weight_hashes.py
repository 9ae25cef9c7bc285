"""Hashes weights files while engines open them, so that nothing is computed from damaged ones.

A hash takes a second or so per GB, and opening a component takes as long, so one hides behind the
other. Which files were found whole is remembered in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from eri_runtime.bundle.hashes import sha256
from eri_runtime.bundle.integrity import check_hash
from eri_runtime.bundle.pinned_files import FileState, file_state
from eri_runtime.bundle.spec import Bundle
from eri_runtime.bundle.user_folders import cache_folder
from eri_runtime.checks import one_of
from eri_runtime.partial_files import write_whole

Verify = Literal["first", "always", "never"]
SETTLED = 1_000_000_000  # ns after which a file that is written again surely has another time


class WeightHashes:
    """Compares weights files with their sha256 in the manifest, each at most once per pipeline.

    Args:
        bundle: The bundle that the files belong to.
        verify: "first" to hash a file only if it has not been hashed in its present state, by
            whichever process; "always" to hash it again; "never" to trust it.

    Raises:
        UnknownNameError: If `verify` is none of the three.
    """

    def __init__(self, bundle: Bundle, verify: Verify = "first") -> None:
        one_of("verify", verify, get_args(Verify))
        self._bundle, self._verify = bundle, verify
        self._lock = threading.Lock()
        self._hashes: dict[str, Future[str]] = {}  # by name, once begun
        self._matching: set[str] = set()

    def begin(self, name: str) -> None:
        """Starts to hash a file in the background, unless that was begun before."""
        with self._lock:
            if self._verify == "never" or name in self._hashes:
                return
            found = self._hashes[name] = Future()
        path, expected = self._bundle.path(name), self._bundle.files[name].sha256
        if self._verify == "first" and _mark(file_state(path), expected).is_file():
            found.set_result(expected)
        else:
            threading.Thread(target=_hash, args=(found, path, expected), daemon=True).start()

    def check(self, name: str) -> None:
        """Waits for the hash of a file that was begun.

        Raises `IntegrityError` if it is not the manifest's, or if the file cannot be read.
        """
        if name in self._hashes and name not in self._matching:
            check_hash(self._bundle, name, self._hashes[name].result)
            self._matching.add(name)


def _hash(found: Future[str], path: Path, expected: str) -> None:
    """Hashes a file into `found`, and remembers its state if the hash is the expected one."""
    try:
        before = file_state(path)
        actual = sha256(path)
        if actual == expected and before is not None and file_state(path) == before:
            _remember(before, expected)
        found.set_result(actual)
    except Exception as error:  # whoever waits gets it
        found.set_exception(error)


def _remember(state: FileState, expected: str) -> None:
    """Marks a state, unless a later change could leave it the same, or the cache is read-only."""
    if time.time_ns() - max(state.modified, state.changed) > SETTLED:
        with suppress(OSError):
            write_whole(_mark(state, expected), b"")


def _mark(state: FileState | None, expected: str) -> Path:
    """Returns the empty file that says: a file in this state has the expected sha256."""
    key = hashlib.sha256(json.dumps([state, expected]).encode()).hexdigest()
    return cache_folder() / "verified" / key

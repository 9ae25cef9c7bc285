"""Hashes weights files while engines open them, so that nothing is computed from damaged ones.

A hash takes a second or so per GB, and opening a component takes as long, so one hides behind the
other. The state in which a file was found whole is remembered in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from eri_runtime.bundle.hashes import sha256
from eri_runtime.bundle.integrity import check_hash
from eri_runtime.bundle.pinned_files import FIX, FileState, file_state
from eri_runtime.bundle.spec import Bundle
from eri_runtime.bundle.user_folders import cache_folder
from eri_runtime.checks import one_of
from eri_runtime.errors import IntegrityError
from eri_runtime.files import read_regular_file
from eri_runtime.partial_files import remove_stale, write_whole

Verify = Literal["first", "always", "never"]
MOST = 1024  # bytes of a remembered state
SETTLED = 1_000_000_000  # ns after which a file that is written again surely has another time


class WeightHashes:
    """Compares files of a bundle with their sha256 in the manifest, each state of a file once.

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
        self._hashes: dict[tuple[str, FileState | None], Future[str]] = {}
        self._matching: set[tuple[str, FileState | None]] = set()

    @property
    def compares(self) -> bool:
        """Whether `check` compares at all: False for "never"."""
        return self._verify != "never"

    def begin(self, name: str) -> FileState | None:
        """Starts to hash a file in the background, unless that was begun before.

        Returns its state, for `check`.
        """
        path, expected = self._bundle.path(name), self._bundle.files[name].sha256
        state = file_state(path)
        with self._lock:
            if self._verify == "never" or (name, state) in self._hashes:
                return state
            found = self._hashes[name, state] = Future()
        if self._verify == "first" and _is_remembered(state, expected):
            found.set_result(expected)
            return state
        work = partial(_hash, found, path, state, expected)
        try:
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:  # no more threads
            work()
        return state

    def check(self, name: str, state: FileState | None) -> None:
        """Waits for the hash of a file that was begun in this state.

        Raises `IntegrityError` if the hash is not the manifest's, if the file cannot be read, or if
        it changed before it was hashed.
        """
        if self._verify != "never" and (name, state) not in self._matching:
            check_hash(self._bundle, name, self._hashes[name, state].result)
            self._matching.add((name, state))

    def check_all(self, names: Iterable[str]) -> None:
        """Hashes files, and waits for all of them. Raises the errors of `check`."""
        begun = [(name, self.begin(name)) for name in names]
        for name, state in begun:
            self.check(name, state)


def _hash(found: Future[str], path: Path, state: FileState | None, expected: str) -> None:
    """Hashes a file into `found`, and remembers its state if the hash is the expected one."""
    try:
        actual = sha256(path)
        if state is None or not state.same_writes(file_state(path)):
            got, way = "a file that changed while it was opened", "the file that was opened"
            raise IntegrityError(path, got=got, expected=way, fix=FIX)
        if actual == expected:
            _remember(state, expected)
        found.set_result(actual)
    except Exception as error:  # whoever waits gets it
        found.set_exception(error)


def _is_remembered(state: FileState | None, expected: str) -> bool:
    """Returns whether a file in this state was found to have the expected sha256."""
    if state is None:
        return False
    with suppress(OSError, RuntimeError, ValueError):  # RuntimeError: a user without a home
        known: object = json.loads(read_regular_file(_memory(state, expected), MOST))
        return known == list(state)
    return False


def _remember(state: FileState, expected: str) -> None:
    """Remembers a state, unless a later change could leave it the same, or the cache is read-only.

    The first file removes unfinished ones of killed processes.
    """
    if time.time_ns() - max(state.modified, state.changed) > SETTLED:
        with suppress(OSError, RuntimeError):
            memory = _memory(state, expected)
            write_whole(memory, json.dumps(state).encode())
            remove_stale(memory.parent)


def _memory(state: FileState, expected: str) -> Path:
    """Returns the file that holds the last state in which a file had the expected sha256."""
    key = json.dumps([state.device, state.inode, expected])
    return cache_folder() / "verified" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

"""Bearer keys: who may ask, and under which name requests are counted."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorchestra.errors import ConfigError
from lorchestra.server.errors import UnauthenticatedError

VARIABLE = "LORCHESTRA_API_KEYS"
"""The environment variable with keys, one per line or separated by commas."""
MIN_CHARACTERS = 16


@dataclass(frozen=True)
class Keys:
    """Names of clients by the SHA-256 digest of their key; without any, the server is open."""

    names: Mapping[bytes, str]

    @classmethod
    def from_lines(cls, lines: Iterable[str], source: str) -> Keys:
        """Keys from lines `KEY` or `KEY NAME`; empty lines and those that start with # are ignored.

        Raises:
            ConfigError: a key is short or repeated, or a line has more than two words; the key is not quoted.
        """
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            where = f"{source}, line {number}"
            if len(words) > 2:
                raise ConfigError(
                    f"{where}: has {len(words)} words; write a key and, if you like, a name without spaces"
                )
            key, name = words[0], words[-1] if len(words) == 2 else f"key{len(names) + 1}"
            if len(key) < MIN_CHARACTERS or not key.isascii():
                raise ConfigError(
                    f"{where}: a key has at least {MIN_CHARACTERS} ASCII characters; to make one: openssl rand -hex 24"
                )
            if _digest(key) in names or name in names.values():
                raise ConfigError(f"{where}: the key or its name occurs twice; remove one")
            names[_digest(key)] = name
        return cls(names)

    @classmethod
    def load(cls, path: str | None) -> Keys:
        """Keys from a file, or else from the environment variable; none if neither is given.

        Raises:
            ConfigError: the file cannot be read or has no keys.
        """
        if path is None:
            return cls.from_lines(os.environ.get(VARIABLE, "").replace(",", "\n").splitlines(), VARIABLE)
        try:
            keys = cls.from_lines(Path(path).read_text(encoding="utf-8").splitlines(), f"--api-keys {path}")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-keys {path}: cannot be read ({error}); give a text file with a key per line"
            ) from error
        if keys.is_open:
            raise ConfigError(f"--api-keys {path}: holds no keys; write one per line")
        return keys

    @property
    def is_open(self) -> bool:
        """Whether anyone may ask."""
        return not self.names

    def client(self, authorization: str | None) -> str:
        """The name of the client whose key the Authorization header carries; "" if the server is open.

        Every key is compared, each in constant time.

        Raises:
            UnauthenticatedError: no bearer key, or a wrong one.
        """
        if self.is_open:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise UnauthenticatedError("no API key; send the header Authorization: Bearer KEY")
        given = _digest(key.strip())
        matches = [name for digest, name in self.names.items() if hmac.compare_digest(digest, given)]
        if not matches:
            raise UnauthenticatedError("the API key is not one of this server's")
        return matches[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

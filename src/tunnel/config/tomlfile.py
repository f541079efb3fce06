"""A configuration file in TOML, and the line of each fault in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tunnel.errors import ConfigError

_Key = tuple[str | int, ...]


@dataclass(frozen=True)
class ConfigFile:
    """A file that is valid TOML: its path, its text, and its options by name."""

    path: Path
    text: str
    options: dict[str, object]

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """
        Reads a file. A UTF-8 byte order mark at its beginning is skipped.

        Raises:
            ConfigError: The file cannot be read or is not TOML; the text names the line.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
            return cls(path, text, tomllib.loads(text))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"cannot read {path}: {reason} (name a TOML file)") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cannot read {path}: byte {error.start} is not UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            position = re.search(r" \(at line (\d+), column \d+\)$", str(error))
            line = int(position[1]) if position else len(text.splitlines())
            message = str(error)[: position.start() if position else None]
            raise ConfigError(f"{path}:{line}: not TOML: {message}") from error

    @cached_property
    def _lines(self) -> dict[_Key, int]:
        return find_lines(self.text)

    def line(self, error: ConfigError) -> int:
        """The line of a fault; for a missing key, that of the table without it."""
        key = error.key
        while key not in self._lines:
            key = key[:-1]
        return self._lines[key]

    def describe(self, error: ConfigError) -> str:
        """The fault as ``FILE:LINE: key: message``."""
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.key)
        return f"{self.path}:{self.line(error)}: {key.removeprefix('.')}: {error}"


_TOKEN = re.compile(
    r"""
    (?P<header> ^[ \t]* \[\[? [^\[\]\n]+ \]\]? (?=[ \t\r]*(?:\#|$)) )
  | (?P<skip> \#[^\n]* | [\s=]+? )
  | (?P<key> (?: "[^"\n]*" | '[^'\n]*' | [^\s\[\]{},=\#"']+ ) (?=[ \t]*=) )
  | (?P<mark> [\[\]{},] )
  | (?P<value> "{3}(?:\\.|[^\\])*?"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\])*" | '[^']*'
             | [^\s\[\]{},=\#"']+ )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def find_lines(text: str) -> dict[_Key, int]:
    """
    Finds the line of each key and array element in a text that tomllib has accepted.

    tomllib keeps no positions. This scan knows brackets, strings and comments, which is enough
    for these files; a dotted key counts as one key.
    """
    lines: dict[_Key, int] = {(): 1}
    table: _Key = ()
    current: _Key = ()
    enclosing: list[_Key] = []  # the arrays and inline tables around `current`
    for match in _TOKEN.finditer(text):
        token = match[0].strip()
        if match.lastgroup == "skip":
            continue
        if match.lastgroup == "header" and not enclosing:
            current = table = _header_key(token, lines)
        elif match.lastgroup == "key":
            current = (*(enclosing[-1] if enclosing else table), token.strip("\"'"))
        elif token in ("]", "}"):
            current = enclosing.pop()
        elif token == "," and isinstance(current[-1], int):
            current = (*enclosing[-1], current[-1] + 1)
        if token not in ("]", "}", ","):
            lines.setdefault(current, text.count("\n", 0, match.start()) + 1)
        if token in ("[", "{"):
            enclosing.append(current)
            current = (*current, 0) if token == "[" else current
    return lines


def _header_key(token: str, lines: Mapping[_Key, int]) -> _Key:
    """The key of ``[name]``, or of the next ``[[name]]``."""
    name = token.strip("[]").strip(" \t\"'")
    if not token.startswith("[["):
        return (name,)
    return name, sum(len(key) == 2 and key[0] == name for key in lines)

"""A configuration file, and where in it a fault stands."""

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
    """A TOML file that could be parsed."""

    path: Path
    text: str
    words: dict[str, object]

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Raises ConfigError, with the line where it is a matter of syntax."""
        try:
            text = path.read_text(encoding="utf-8")
            return cls(path, text, tomllib.loads(text))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"cannot read {path}: {reason} (name a TOML file)") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cannot read {path}: byte {error.start} is not UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
            line = int(place[1]) if place else len(text.splitlines())
            message = str(error)[: place.start() if place else None]
            raise ConfigError(f"{path}:{line}: not TOML: {message}") from error

    @cached_property
    def _lines(self) -> dict[_Key, int]:
        return _lines(self.text)

    def line(self, error: ConfigError) -> int:
        """Where the fault stands; what is not there, where that stands which lacks it."""
        key = error.key
        while key not in self._lines:
            key = key[:-1]
        return self._lines[key]

    def describe(self, error: ConfigError) -> str:
        """``FILE:LINE: key: message``."""
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


def _lines(text: str) -> dict[_Key, int]:
    """
    The line of each key and array element in a text that tomllib has accepted.

    tomllib keeps no positions. This scan knows brackets, strings and comments, which is
    enough for files of ours; a dotted key counts as one word.
    """
    lines: dict[_Key, int] = {(): 1}
    table: _Key = ()
    here: _Key = ()
    around: list[_Key] = []  # the arrays and inline tables that `here` is in
    for match in _TOKEN.finditer(text):
        token = match[0].strip()
        if match.lastgroup == "skip":
            continue
        if match.lastgroup == "header" and not around:
            here = table = _header(token, lines)
        elif match.lastgroup == "key":
            here = (*(around[-1] if around else table), token.strip("\"'"))
        elif token in ("]", "}"):
            here = around.pop()
        elif token == "," and isinstance(here[-1], int):
            here = (*around[-1], here[-1] + 1)
        if token not in ("]", "}", ","):
            lines.setdefault(here, text.count("\n", 0, match.start()) + 1)
        if token in ("[", "{"):
            around.append(here)
            here = (*here, 0) if token == "[" else here
    return lines


def _header(token: str, lines: Mapping[_Key, int]) -> _Key:
    """The key of ``[name]``, or of the next ``[[name]]``."""
    name = token.strip("[]").strip(" \t\"'")
    if not token.startswith("[["):
        return (name,)
    return name, sum(len(key) == 2 and key[0] == name for key in lines)

"""One option of a node, and how given options are parsed by a table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunnel.config.values import Parser, as_list, check_known, text
from tunnel.errors import ConfigError

Group = Literal["node", "frames", "containers", "store", "cluster", "command"]


@dataclass(frozen=True)
class Option:
    """
    One option.

    Attributes:
        name: The key in a file, and the flag without its ``--``.
        help: What it does, as ``--help`` and the reference page show it.
        parse: Converts a given value; called for each value if it is `repeatable`.
        group: The section of the reference page.
        metavar: The placeholder of the value in the help; empty if the flag takes none.
        default: The converted value if the option is not given.
        default_help: The default, as the help shows it.
        tap_default: The default in TAP mode, for an option that is invalid in TUN mode.
        keyword: The argument and attribute of Config or ClusterConfig; by default the name with
            underscores.
        repeatable: Whether it has several values: a list in a file, several flags.
        kind: How click reads the flag: ``switch`` is ``--x`` or ``--no-x``, ``flag`` only ``--x``.
        implied: The value of a flag that is given without a value.
        flannel: Whether flannel's environment variable is read as well.
    """

    name: str
    help: str
    parse: Parser = text
    group: Group = "node"
    metavar: str = ""
    default: object = None
    default_help: str = ""
    tap_default: object = None
    keyword: str = ""
    repeatable: bool = False
    kind: Literal["text", "integer", "switch", "flag", "count"] = "text"
    implied: str | None = None
    flannel: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keyword", self.keyword or self.name.replace("-", "_"))

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the strongest first."""
        suffix = self.name.upper().replace("-", "_")
        return (f"TUNNEL_{suffix}", *([f"FLANNELD_{suffix}"] if self.flannel else []))


def parse_options(
    given: Mapping[str, object], known: Mapping[str, Option], *, names: Sequence[str] = ()
) -> tuple[dict[str, Any], list[ConfigError]]:
    """
    Parses each option separately: returns the values by keyword, and every fault with its key.

    The values of a repeatable option are a dict by their index in `given`. An option with a fault
    has its default, or that one value is missing, so that the rules still see the others.

    Args:
        names: What a misspelled name may have meant; by default the names in `known`.
    """
    parsed: dict[str, Any] = {
        option.keyword: {} if option.repeatable else option.default for option in known.values()
    }
    faults: list[ConfigError] = []

    def misspelled(name: str, _: object) -> str:
        return check_known("key", name, names or tuple(known))

    def attempt(parse: Parser, *key: str | int, value: object) -> Any:
        try:
            return parse(str(key[0]), value)
        except* ConfigError as group:
            for error in group.exceptions:
                assert isinstance(error, ConfigError)
                error.key = (*key, *error.key)
                faults.append(error)

    for name, value in given.items():
        option = known.get(name)
        if option is None:
            attempt(misspelled, name, value=value)
        elif option.repeatable:
            for index, one in enumerate(as_list(value)):
                if (exact := attempt(option.parse, name, index, value=one)) is not None:
                    parsed[option.keyword][index] = exact
        elif value is not None and (exact := attempt(option.parse, name, value=value)) is not None:
            parsed[option.keyword] = exact
    return parsed, faults


def options_by_name(
    keywords: Mapping[str, object], known: Mapping[str, Option]
) -> dict[str, object]:
    """Keyword arguments as options. Raises TypeError for an unknown keyword, as any call does."""
    names = {option.keyword: option.name for option in known.values()}
    for keyword in keywords:
        if keyword not in names:
            raise TypeError(f"unexpected keyword argument {keyword!r}")
    return {names[keyword]: value for keyword, value in keywords.items()}

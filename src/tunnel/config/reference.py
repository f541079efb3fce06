"""Prints docs/reference/options.md: ``python -m tunnel.config.reference``."""

from __future__ import annotations

from collections.abc import Iterator

from tunnel.config.option import Group, Option
from tunnel.config.options import COMMAND_OPTIONS, OPTIONS

_INTRODUCTION = """\
# Options

Every option of a node. The table in `src/tunnel/config/options.py` is the source of this page, of
`tunnel up --help`, of the keys of a configuration file and of the keywords of `Config`,
`ClusterConfig` and `Tunnel`. To regenerate the page:
`python -m tunnel.config.reference > docs/reference/options.md`.

- A flag is `--` and the option's name: `--source-ports 1`.
- A key in a file is the name: `source-ports = 1`. An option that may be repeated takes a list.
- A keyword of a Python call is the name with underscores, unless the table gives another one:
  `Config(source_ports=1)`.
- An environment variable is `TUNNEL_` and the name in capitals, with underscores:
  `TUNNEL_SOURCE_PORTS=1`. Several values are separated by spaces. Options marked with † are also
  read from flannel's variable, `FLANNELD_` in place of `TUNNEL_`.

A flag overrides a variable, and a variable overrides the file."""

_TITLES: dict[Group, tuple[str, str]] = {
    "node": ("Node", ""),
    "frames": (
        "Frames and packets",
        "`flood`, `learning`, `ageing` and `storm-limit` need mode tap.",
    ),
    "containers": ("Containers", "See [containers](../containers.md)."),
    "store": (
        "Store",
        "`etcd-endpoints` or `store` makes the node a member of a [cluster](../cluster.md): it "
        "reads `vni`, `port` and `network` from the store, and they cannot be given. `tunnel "
        "network` has the options of this section, too.",
    ),
    "cluster": ("Member of a cluster", "These need a store."),
    "command": ("Command", "Only flags and variables of `tunnel up`."),
}

_HEADER = "| option | keyword | default | |\n| --- | --- | --- | --- |"


def page() -> str:
    """The reference page, in Markdown."""
    return "\n\n".join([_INTRODUCTION, *(_section(group) for group in _TITLES)]) + "\n"


def _section(group: Group) -> str:
    title, text = _TITLES[group]
    options = [one for one in (OPTIONS | COMMAND_OPTIONS).values() if one.group == group]
    table = "\n".join([_HEADER, *map(_row, options)])
    return "\n\n".join([f"## {title}", *([text] if text else []), table])


def _row(option: Option) -> str:
    name = f"`{_usage(option)}`{' †' if option.flannel else ''}"
    keyword = "" if option.group == "command" else f"`{option.keyword}`"
    cells = (name, keyword, option.default_help, " ".join(_sentences(option)))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _usage(option: Option) -> str:
    if option.kind == "switch":
        return f"--{option.name}/--no-{option.name}"
    return f"--{option.name} {option.metavar}".rstrip()


def _sentences(option: Option) -> Iterator[str]:
    yield option.help
    if option.repeatable:
        yield "May be repeated."


if __name__ == "__main__":
    print(page(), end="")

"""Turns the Sphinx markup of docstrings, like ``:class:`Tunnel``` and ``::``, into Markdown."""

import re
from collections.abc import Iterator

import griffe

ROLE = re.compile(r":(?:class|meth|attr|func|mod|exc|data|obj):`~?([\w.]+)`")
SEVERAL = re.compile(r"^( {4,})(\w+(?:, \w+)+): (.*(?:\n\1 {4}.*)*)", re.MULTILINE)
"""An item like ``host, port: ...``, which griffe does not know."""

LITERAL = re.compile(r"^\s*::$|(?<=:):$", re.MULTILINE)


class Roles(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        for obj in _objects(pkg):
            if obj.docstring is not None:
                text = LITERAL.sub("", SEVERAL.sub(_one_each, obj.docstring.value))
                obj.docstring.value = ROLE.sub(lambda role, obj=obj: _link(obj, role[1]), text)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _one_each(item: re.Match[str]) -> str:
    indent, names, text = item.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


def _link(obj: griffe.Object, name: str) -> str:
    """A reference that becomes a link if the site has that object, and code otherwise. The name
    is looked up as Python does it, from the object that the docstring belongs to."""
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional>`{name}`</autoref>'

"""The structure that docs/design.md describes: layers, purity, and which C file does I/O."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "tunnel"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted((PACKAGE / "native").glob("*.[ch]"))

LAYERS = [
    {"tunnel.__main__"},
    {"tunnel.cli"},
    {"tunnel"},
    {"tunnel.metrics", "tunnel.rpc", "tunnel.testing"},
    {"tunnel.cluster"},
    {"tunnel.tunnel"},
    {"tunnel.diagnostics"},
    {"tunnel.node"},
    {"tunnel.linux", "tunnel.protocol", "tunnel.vxlan"},
    {"tunnel._native"},
    {"tunnel.config"},
    {"tunnel.events", "tunnel.supervise"},
    {"tunnel.status"},
    {"tunnel.prefixes"},
    {"tunnel.types"},
    {"tunnel.errors", "tunnel.version"},
]
"""From the top. A module imports from layers below its own, or from its own package."""

CONFINED = {
    "aiohttp": "tunnel.cluster.stores.etcd_gateway",
    "click": "tunnel.cli",
    "prometheus_client": "tunnel.metrics",
    "pytun": "tunnel.linux.tun",
    "scapy": "tunnel.diagnostics.decode",
}
"""Library -> the only part that imports it."""

IMPURE = {"asyncio", "socket", "time", "os", "uvloop", "tunnel._native"}

SOCKET_CALLS = r"(?:socket|sendmsg|recvmsg|sendmmsg|recvmmsg|sendto|recvfrom|setsockopt)"
DEVICE_CALLS = r"(?:read|write|readv|writev)"


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: Path) -> set[str]:
    """Returns the full names of all imports, wherever they are in the file. ``from tunnel import
    x`` is an import of ``tunnel.x`` if that is a module."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if is_module(inner) else node.module)
    return names


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyi"))


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def layer_of(name: str) -> tuple[int, str]:
    """Returns the number of the layer, and the part of the layer that contains the module."""
    for number, parts in enumerate(LAYERS):
        for part in parts:
            # "tunnel" is the module tunnel/__init__.py, not everything below it.
            if name == part or (part != "tunnel" and within(name, part)):
                return number, part
    raise AssertionError(f"{name} is in no layer: add it to LAYERS")


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_down(module: Path) -> None:
    name = name_of(module)
    number, part = layer_of(name)
    for imported in imports_of(module):
        if within(imported, "tunnel"):
            below, other = layer_of(imported)
            assert below > number or other == part, f"{name} imports {imported}"


def test_no_import_circles() -> None:
    """Not inside a package either, and not by an import inside a function."""
    imports = {name_of(module): imports_of(module) for module in MODULES}
    remaining = dict.fromkeys(imports)
    while free := [one for one in remaining if not imports[one] & (remaining.keys() - {one})]:
        for one in free:
            del remaining[one]
    assert not list(remaining), "these import each other in a circle"


def test_every_package_has_a_sign() -> None:
    """A package says what is inside and what it may import, and design.md names it."""
    design = (PACKAGE.parent.parent / "docs" / "design.md").read_text()
    for sign in PACKAGE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(sign.read_text())) or ""
        assert len(text.splitlines()) >= 2, f"{sign}: says nothing"
        assert sign.parent == PACKAGE or f"{sign.parent.name}/" in design, f"{sign.parent}: absent"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_libraries_are_confined(module: Path) -> None:
    name = name_of(module)
    for imported in imports_of(module):
        only = CONFINED.get(imported.partition(".")[0])
        assert only is None or within(name, only), f"{name} imports {imported}"


PURE = [
    *sorted((PACKAGE / "protocol").glob("*.py")),
    *(
        PACKAGE / "cluster" / f"{name}.py"
        for name in ("cache", "lease", "network", "record", "roster")
    ),
    PACKAGE / "prefixes.py",
    PACKAGE / "config" / "rules.py",
    *(
        PACKAGE / "diagnostics" / f"{name}.py"
        for name in ("firewall", "flow", "host_report", "packet_summary")
    ),
    *sorted((PACKAGE / "diagnostics" / "path_trace").glob("*.py")),
    *(
        PACKAGE / "diagnostics" / "doctor" / f"{name}.py"
        for name in ("finding", "host_checks", "peer_checks", "underlay_checks")
    ),
]
"""Rules: they know no clock, socket or loop."""


@pytest.mark.parametrize("module", PURE, ids=name_of)
def test_rules_are_pure(module: Path) -> None:
    impure = [one for one in imports_of(module) if any(within(one, part) for part in IMPURE)]
    assert not impure


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_only_a_node_joins_the_planes(module: Path) -> None:
    """Elsewhere the C core is a codec and a list of drop reasons: no packet path, no FDB."""
    names = {
        alias.name
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "tunnel._native"
        for alias in node.names
    }
    inside = within(name_of(module), "tunnel.node")
    assert inside or names <= {"ANY_VTEP_MAC", "DROP_REASONS"}, names


@pytest.mark.parametrize("module", sorted((PACKAGE / "cli").glob("*.py")), ids=name_of)
def test_cli_uses_no_inner_parts(module: Path) -> None:
    parts = ("tunnel.linux", "tunnel.protocol", "tunnel._native")
    imported = imports_of(module) - {"tunnel.linux.systemd"}  # a command's own business
    assert not [one for one in imported if any(within(one, part) for part in parts)]


def code_of(source: Path) -> str:
    """Returns the C code without comments and strings."""
    noise = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"'
    return re.sub(noise, " ", source.read_text(), flags=re.DOTALL)


def test_there_is_c_to_check() -> None:
    assert {"py.h", "underlay.c", "device.c"} <= {source.name for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_python_is_included_by_the_binding_alone(source: Path) -> None:
    included = re.search(r"#\s*include\s*[<\"](?:Python|py)\.h", source.read_text())
    assert not included or re.fullmatch(r"module\.c|py\.h|py_\w+\.c", source.name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(
    ("calls", "home"), [(SOCKET_CALLS, "underlay.c"), (DEVICE_CALLS, "device.c")]
)
def test_system_calls_live_in_one_file(source: Path, calls: str, home: str) -> None:
    found = re.findall(rf"(?<![\w.>]){calls}\s*\(", code_of(source))
    assert not found or source.name == home


# A definition of a variable reaches a semicolon or "=" before any parenthesis or brace. Outside
# functions it starts in the first column; inside them only static variables outlive the call.
STATIC = r"^[ \t]*(?:static|extern|_Thread_local)\b[^;={(]*[;=]"
GLOBAL = r"^(?!typedef|struct \w+;|union \w+;|#)\w[\w \t*]*(?:\[[^\]]*\])*[ \t]*[;=]"


def variables_in(code: str) -> list[str]:
    """Returns the definitions of variables that can change and outlive the call of a function."""
    found = re.findall(f"{STATIC}|{GLOBAL}", code, flags=re.MULTILINE)
    # CPython's tables and keyword lists have types without const, but nothing changes them.
    return [one for one in found if not re.search(r"\bconst\b|\bPy\w+|char \*\w+\[\]", one)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_all_state_is_in_the_forwarder(source: Path) -> None:
    """C code must not assume that there is only one worker."""
    assert not variables_in(code_of(source))


def test_variables_are_seen() -> None:
    bad = ["int count;", "static uint8_t slab[64];", "    static int calls = 0;", "char *name = x;"]
    good = [
        "static const int limit = 3;",
        "static int sum(const int *x)\n{\n    int total = 0;\n}",
        "struct forwarder;",
        "typedef int number;",
    ]
    assert [code for code in bad + good if variables_in(code)] == bad

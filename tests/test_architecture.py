"""Who may import whom, and which C file may touch the world: docs/design.md, as a test."""

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
"""From the top; a module imports from layers below its own, or from its own package."""

AT_HOME = {
    "aiohttp": "tunnel.cluster.stores.etcd_gateway",
    "click": "tunnel.cli",
    "prometheus_client": "tunnel.metrics",
    "pytun": "tunnel.linux.tun",
    "scapy": "tunnel.diagnostics.decode",
}
"""Libraries that one part of ours stands for."""

IMPURE = {"asyncio", "socket", "time", "os", "uvloop", "tunnel._native"}

SOCKET_CALLS = r"(?:socket|sendmsg|recvmsg|sendmmsg|recvmmsg|sendto|recvfrom|setsockopt)"
DEVICE_CALLS = r"(?:read|write|readv|writev)"


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: Path) -> set[str]:
    """Full names of all that is imported, wherever in the file; ``from tunnel import x``
    is an import of ``tunnel.x`` where that is a module."""
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
    """Number of the layer, and the part of it that the module belongs to."""
    for number, parts in enumerate(LAYERS):
        for part in parts:
            # The package itself is a layer, not all that is in it.
            if name == part or (part != "tunnel" and within(name, part)):
                return number, part
    raise AssertionError(f"{name} is in no layer: where does it belong?")


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_down(module: Path) -> None:
    name = name_of(module)
    number, part = layer_of(name)
    for imported in imports_of(module):
        if within(imported, "tunnel"):
            below, other = layer_of(imported)
            assert below > number or other == part, f"{name} imports {imported}"


def test_every_room_has_a_sign() -> None:
    """A package says what is inside and what it may import, and the paper names each."""
    paper = (PACKAGE.parent.parent / "docs" / "design.md").read_text()
    for sign in PACKAGE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(sign.read_text())) or ""
        assert len(text.splitlines()) >= 2, f"{sign}: what is inside?"
        assert sign.parent == PACKAGE or f"{sign.parent.name}/" in paper, f"{sign.parent}: not told"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_libraries_stay_at_home(module: Path) -> None:
    name = name_of(module)
    for imported in imports_of(module):
        home = AT_HOME.get(imported.partition(".")[0])
        assert home is None or within(name, home), f"{name} imports {imported}"


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
"""Rules, which know no clock, socket or loop."""


@pytest.mark.parametrize("module", PURE, ids=name_of)
def test_rules_are_pure(module: Path) -> None:
    impure = [one for one in imports_of(module) if any(within(one, part) for part in IMPURE)]
    assert not impure


@pytest.mark.parametrize("module", sorted((PACKAGE / "cli").glob("*.py")), ids=name_of)
def test_cli_uses_no_inner_parts(module: Path) -> None:
    parts = ("tunnel.linux", "tunnel.protocol", "tunnel._native")
    imported = imports_of(module) - {"tunnel.linux.systemd"}  # a command's own business
    assert not [one for one in imported if any(within(one, part) for part in parts)]


def code_of(source: Path) -> str:
    """C without comments and strings."""
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


# A variable's definition comes to its ';' or '=' before any '(' or '{'; outside of functions it
# starts in the first column, inside of them only what is static outlives the call.
STATIC = r"^[ \t]*(?:static|extern|_Thread_local)\b[^;={(]*[;=]"
GLOBAL = r"^(?!typedef|struct \w+;|union \w+;|#)\w[\w \t*]*(?:\[[^\]]*\])*[ \t]*[;=]"


def variables_in(code: str) -> list[str]:
    """Those that can change, and outlive the function that uses them."""
    found = re.findall(f"{STATIC}|{GLOBAL}", code, flags=re.MULTILINE)
    # Not const by CPython's types, though nobody changes them: its tables and keyword lists.
    return [one for one in found if not re.search(r"\bconst\b|\bPy\w+|char \*\w+\[\]", one)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_all_state_is_in_the_forwarder(source: Path) -> None:
    """Nothing may assume that there is only one worker."""
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

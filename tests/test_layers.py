"""Who may import whom, and which modules may touch the outside world.

The lists are the house plan: a stage imports only stages to its right, dataplanes do not know each other, and a module
that is not listed as an edge imports nothing that reads a clock, a socket, a file, a process or the environment.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hansa"

# From the outside in; a module may import from its own layer and from those below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "demo", "__main__"}),
    frozenset(
        {
            *("engine", "pipeline", "explain", "testing", "lab", "lock", "brain"),
            *("health", "health_answers", "meter", "documents", "healing", "dns_probe", "events", "event_sender"),
            *("health_http", "health_pages", "health_debug"),
        }
    ),
    frozenset({"sources", "dataplanes"}),
    frozenset({"hns", "netlink"}),
    frozenset({"rules"}),
    frozenset({"services"}),
    frozenset({"api"}),
    frozenset({"bounded", "bucket", "net", "errors", "config", "kubeproxy", "schedule", "metrics", "logs", "wording"}),
)

# Modules that do I/O (the `!` of the house plan). Everything else is pure and importable on any system.
EDGES = frozenset(
    {
        "cli",
        "brain.server",
        "cli.app",
        "cli.brain",
        "cli.state",
        "cli.doctor",
        "cli.file_watch",
        "cli.heal",
        "cli.inputs",
        "cli.options",
        "cli.planes",
        "cli.proxy",
        "cli.windows_service",
        "dns_probe",
        "engine",
        "event_sender",
        "health",
        "health_debug",
        "health_http",
        "bounded",
        "lock",
        "logs",
        "sources.files",
        "sources.kpng.client",
        "sources.kpng.file_source",
        "sources.host",
        "sources.node_gate",
        "sources.kubernetes.client",
        "dataplanes.exec.apply",
        "dataplanes.nftables.apply",
        "dataplanes.nftables.host",
        "dataplanes.nftables.live",
        "dataplanes.userspace.relay",
        "dataplanes.windows.apply",
        "dataplanes.windows.journal",
        "hns.native",
        "hns.port_ranges",
        "hns.remote",
        "hns.emulator.server",
        "netlink.socket",
        "testing.dataplanes",
    }
)

# Pure modules that name an edge all the same, and why none of them does I/O by it or hides that it does.
NAMED_BY_PURE_MODULES: dict[str, dict[str, str]] = {
    "__main__": {"cli": "starts it"},
    "brain.agent": {"engine": "is handed one, reads its state", "sources.kpng.client": "is handed one, tells it"},
    "dataplanes.userspace": {"dataplanes.userspace.relay": "its public name"},
    "dataplanes.windows.cleanup": {"dataplanes.windows.apply": "is handed the dataplane that does it"},
    "dataplanes.windows.node_ports": {"hns.port_ranges": "values"},
    "demo": {"dataplanes.windows.apply": "over the emulator"},
    "documents": {"engine": "values"},
    "events": {"engine": "values"},
    "healing": {"engine": "is handed one, asks it"},
    "health_answers": {"engine": "values"},
    "lab.cluster": {"dataplanes.windows.apply": "over the emulator"},
    "meter": {"engine": "values"},
    "netlink.connections": {"netlink.socket": "asks the kernel by its socket, and is the twin of one in memory"},
    "testing": {"testing.dataplanes": "its public names"},
}

IMPURE = frozenset({"asyncio", "ctypes", "grpc", "os", "socket", "subprocess", "threading", "time", "signal", "select"})


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that the file imports, TYPE_CHECKING blocks and functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
            if (node.module or "").split(".")[0] == "hansa":  # its names may be modules
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def layer_of(package: str) -> int:
    for depth, names in enumerate(LAYERS):
        if package in names:
            return depth
    raise AssertionError(f"hansa.{package} is in no layer: add it to LAYERS, or move it")


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_layers_below(module: str) -> None:
    own = layer_of(module.split(".")[0])
    for imported in sorted(imports(MODULES[module])):
        parts = imported.split(".")
        if parts[0] != "hansa" or len(parts) == 1 or parts[1].startswith("__version"):
            continue
        assert layer_of(parts[1]) >= own, f"hansa.{module} imports {imported}, which lies above it"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("dataplanes.")])
def test_dataplanes_do_not_know_each_other(module: str) -> None:
    shared = {"base", "diff", "plan", "conntrack"}
    own = module.split(".")[1]
    for imported in imports(MODULES[module]):
        if imported.startswith("hansa.dataplanes."):
            assert imported.split(".")[2] in shared | {own}, f"hansa.{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name not in EDGES])
def test_pure_modules_touch_nothing_outside(module: str) -> None:
    touched = {name.split(".")[0] for name in imports(MODULES[module])} & IMPURE
    assert not touched, f"hansa.{module} is pure by the house plan but imports {sorted(touched)}"


def test_pure_modules_name_edges_for_a_reason_alone() -> None:
    """An edge reached by way of another module is still an edge."""
    found = {
        name: edges
        for name in MODULES.keys() - EDGES
        if not name.startswith("cli.")  # the outermost layer puts edges together
        if (edges := {imported.removeprefix("hansa.") for imported in imports(MODULES[name])} & EDGES)
    }
    assert found == {name: set(edges) for name, edges in NAMED_BY_PURE_MODULES.items()}


def test_every_edge_is_on_the_list_for_a_reason() -> None:
    """An edge that has become pure leaves the list."""
    existing = EDGES & MODULES.keys()
    pure = [
        name
        for name in existing
        if not {imported.split(".")[0] for imported in imports(MODULES[name])}
        & (IMPURE | {"pathlib", "aiohttp", "sys"})
    ]
    allowed = {"dataplanes.windows.apply", "dataplanes.nftables.apply"}  # I/O by way of the seam that they are given
    assert set(pure) <= allowed, f"no I/O left in {pure}"

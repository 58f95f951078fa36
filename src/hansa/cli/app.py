"""The commands: run, render, plan, hns ls, hns serve, demo."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from hansa import __version__
from hansa.api.change import Upsert
from hansa.cli import options
from hansa.errors import ConfigError, Fault

if TYPE_CHECKING:
    from rich.console import Console

    from hansa.api.objects import Node
    from hansa.config import Config
    from hansa.rules.model import RuleChanges
    from hansa.sources import Source
    from hansa.sources.kubernetes.kubeconfig import Connection

app = typer.Typer(
    name="hansa",
    help="A Kubernetes service proxy for Windows and Linux nodes that heals itself and shows what it does.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
hns_app = typer.Typer(
    help="Look at the Windows host networking service, or offer an emulated one.", no_args_is_help=True
)
app.add_typer(hns_app, name="hns")

Source_ = Annotated[
    str, typer.Option("--source", help="`kubernetes`, or a manifest file or folder, or - for standard input.")
]
NodeName = Annotated[str, typer.Option(help="This node's name; default: the host name in lower case.")]
DataplaneName = Annotated[str, typer.Option("--dataplane", help="What programs the host: windows.")]
Hns = Annotated[
    str, typer.Option("--hns", help="native | emulator | emulator:FILE | remote:ADDRESS (see `hansa hns serve`).")
]
Network = Annotated[str, typer.Option(help="Pod network of a fresh emulated node: overlay or l2bridge.")]
Build = Annotated[str, typer.Option(help="Windows build of a fresh emulated node: ws2019, ws2022, ws2025, ...")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings in kube-proxy's words, as YAML.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value; may be repeated; wins.")]
Kubeconfig = Annotated[str, typer.Option(help="kubeconfig file; default: $KUBECONFIG, else in-cluster.")]
Master = Annotated[str, typer.Option(help="Address of the API server; wins over the kubeconfig's.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"hansa {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def run(
    context: typer.Context,
    *,
    source: Source_ = options.KUBERNETES,
    node_name: NodeName = "",
    dataplane: DataplaneName = "windows",
    hns: Hns = "native",
    network: Network = "overlay",
    build: Build = "ws2022",
    hns_listen: Annotated[str, typer.Option(help="Offer the emulated HNS to other programs at this address.")] = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    verbose: Annotated[bool, typer.Option("-v", help="Log debugging lines too.")] = False,
) -> None:
    """Be this node's service proxy until a signal ends it. Ending leaves all rules in place."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s %(message)s",
        stream=sys.stderr,
    )
    _known_dataplane(dataplane)
    from hansa import engine as engine_module

    read = options.read_settings(config, settings or [], node_name)
    for note in read.notes:
        logging.getLogger("hansa.config").warning("setting without effect: %s", note)
    objects = _source(source, read.config, kubeconfig=kubeconfig, master=master)
    known: Sequence[Node] = ()
    if not _is_kubernetes(source):
        known = options.nodes(_read_once(source).changes)
    elif hns == "emulator":  # a real node must start while the API is away; an emulated one is laid out by the Nodes
        known = _cluster_nodes(kubeconfig, master)
    options.check_node_name(read.config, known)
    host = context.with_resource(options.open_host(hns, read.config, known, network=network, build=build))
    settled = options.with_source_vip(read.config, host)
    objects = options.with_kubelet(objects, host, settled)
    if hns_listen:
        context.with_resource(options.offer(host, hns_listen))
    plane = options.windows_dataplane(host, settled)
    engine = engine_module.Engine(settled, [objects], dataplane=plane, read_addresses=_addresses(host, hns))
    ended_by = asyncio.run(engine_module.run(engine))
    if ended_by is not None:
        raise typer.Exit(128 + ended_by)  # as shells count, and as kube-proxy ends


@app.command()
def render(
    context: typer.Context,
    *,
    source: Source_,
    node_name: NodeName = "",
    dataplane: DataplaneName = "windows",
    network: Network = "overlay",
    build: Build = "ws2022",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    output: Output = "yaml",
) -> None:
    """Print the objects that this node's kernel would have to hold. No host is read or written.

    Endpoints are named by their addresses, since only a host gives them ids. Objects of the input that cannot be used
    are named on standard error, one line each; the exit code is then 1.
    """
    _known_dataplane(dataplane)
    from hansa.dataplanes.windows.render import as_documents
    from hansa.explain import text

    read = options.read_settings(config, settings or [], node_name)
    found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    known = options.nodes(found.changes)
    options.check_node_name(read.config, known)
    host = context.with_resource(options.open_host("emulator", read.config, known, network=network, build=build))
    settled = options.with_source_vip(read.config, host)
    plane = options.windows_dataplane(host, settled)
    message = _rules(found, settled, host)
    rendered = plane.render(message, now=time.monotonic())
    documents = as_documents(rendered)
    _print_documents(
        {"kind": "WindowsObjects", "node": settled.node_name, **documents},
        output,
        table=lambda console: console.print(text.rendered_table(rendered)),
    )
    for line in text.shortfall_lines(rendered.shortfalls):
        print(f"hansa: shortfall: {line}", file=sys.stderr)
    _complain(found)


@app.command()
def plan(
    context: typer.Context,
    *,
    source: Source_,
    node_name: NodeName = "",
    dataplane: DataplaneName = "windows",
    hns: Hns = "native",
    network: Network = "overlay",
    build: Build = "ws2022",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    output: Output = "table",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 5 if something would change.")] = False,
) -> None:
    """Print what a sync would change on this host now. Reads the host, writes nothing."""
    _known_dataplane(dataplane)
    from hansa.explain import text
    from hansa.lab.cni import add_local_pods

    read = options.read_settings(config, settings or [], node_name)
    found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    known = options.nodes(found.changes)
    options.check_node_name(read.config, known)
    host = context.with_resource(options.open_host(hns, read.config, known, network=network, build=build))
    settled = options.with_source_vip(read.config, host)
    if host.emulator is not None and hns == "emulator":
        add_local_pods(host.emulator, found.changes, settled.node_name)
    plane = options.windows_dataplane(host, settled)
    steps = plane.plan(_rules(found, settled, host), now=time.monotonic())

    def table(console: Console) -> None:
        if steps:
            console.print(text.change_table(steps))
        else:
            console.print("Nothing to do: the host holds what it should.")

    _print_documents(text.change_data(steps), output, table=table)
    _complain(found)
    if steps and exit_code:
        raise typer.Exit(5)


@hns_app.command("ls")
def hns_ls(
    context: typer.Context,
    kinds: Annotated[list[str] | None, typer.Argument(help="networks, endpoints, loadbalancers; default: all.")] = None,
    *,
    hns: Hns = "native",
    style: Annotated[str, typer.Option(help="table (as Windows Server 2019 prints) or blocks (2022).")] = "table",
    output: Output = "table",
) -> None:
    """List what the Windows host networking service holds, in the layout of `hnsdiag list`."""
    from hansa.hns import hnsdiag

    wanted = kinds or ["networks", "endpoints", "loadbalancers"]
    unknown = sorted(set(wanted) - {"networks", "endpoints", "loadbalancers", "all"})
    if unknown:
        raise ConfigError(
            Fault("KINDS", f"{unknown[0]!r} is no kind", "give networks, endpoints, loadbalancers or all")
        )
    layouts = {layout.value: layout for layout in hnsdiag.DiagLayout}
    if style not in layouts:
        raise ConfigError(Fault("--style", f"{style!r} is no layout", f"give one of {', '.join(layouts)}"))
    listing = options.read_hns(context.with_resource(options.open_filled(hns)).api)
    for line in listing.malformed:
        print(f"hansa: host: {line}", file=sys.stderr)
    layout = layouts[style]
    parts = (
        ("networks", listing.networks, hnsdiag.list_networks(listing.networks, layout)),
        ("endpoints", listing.endpoints, hnsdiag.list_endpoints(listing.endpoints, listing.networks, layout)),
        ("loadbalancers", listing.load_balancers, hnsdiag.list_load_balancers(listing.load_balancers, layout)),
    )
    shown = [part for part in parts if part[0] in wanted or "all" in wanted]
    if output == "json":
        print(hnsdiag.list_json([each for _, objects, _ in shown for each in objects]))
    else:
        print("\n".join(text for _, _, text in shown))


@hns_app.command("serve")
def hns_serve(
    context: typer.Context,
    listen: Annotated[str, typer.Option(help="unix:/path or 127.0.0.1:PORT (port 0 = any free one).")],
    *,
    hns: Hns = "emulator",
    network: Network = "overlay",
    build: Build = "ws2022",
    source: Annotated[str, typer.Option(help="Manifests whose Nodes and local pods the node is made for.")] = "",
    node_name: NodeName = "",
) -> None:
    """Offer an emulated HNS to other programs, one line of JSON per call, until a signal ends it."""
    from hansa.engine import wait_for_signal
    from hansa.hns.emulator.server import serve
    from hansa.lab.cni import add_local_pods

    read = options.read_settings(None, [], node_name)
    changes = _read_once(source).changes if source else ()
    host = context.with_resource(
        options.open_host(hns, read.config, options.nodes(changes), network=network, build=build)
    )
    if host.emulator is not None:
        add_local_pods(host.emulator, changes, read.config.node_name)
    with serve(host.api, listen, machine=host.machine()) as server:
        print(f"serving HNS at {server.address}", flush=True)
        ended_by = asyncio.run(wait_for_signal())
    raise typer.Exit(128 + ended_by)


@app.command()
def demo(
    *,
    network: Network = "overlay",
    build: Build = "ws2022",
    manifests: Annotated[bool, typer.Option("--manifests", help="Print the demo's cluster as YAML and exit.")] = False,
) -> None:
    """An emulated Windows node from empty to healed: no root, no cluster, no Windows."""
    from hansa import demo as demo_module

    if manifests:
        print(demo_module.cluster_manifests(), end="")
        return
    demo_module.run(_console(), network=network, build=build)


# --- shared by the commands ---

_PIPE_WIDTH = 1000  # columns; more than any row needs


def _known_dataplane(name: str) -> None:
    if name not in options.DATAPLANES:
        known = ", ".join(options.DATAPLANES)
        raise ConfigError(Fault("--dataplane", f"{name!r} is not available", f"this version has: {known}"))


def _is_kubernetes(source: str) -> bool:
    return source == options.KUBERNETES


def _source(text: str, config: Config, *, kubeconfig: str, master: str) -> Source:
    if not _is_kubernetes(text):
        from hansa.sources.files import FileSource

        return FileSource(text, config)
    from hansa.sources.kubernetes.client import KubernetesSource

    connection = _connection(kubeconfig, master)
    for warning in connection.warnings:
        logging.getLogger("hansa.config").warning("API connection: %s", warning)
    return KubernetesSource(connection, config)


def _connection(kubeconfig: str, master: str) -> Connection:
    from hansa.sources.kubernetes.client import load_connection

    return load_connection(kubeconfig or os.environ.get("KUBECONFIG", ""), master, os.environ)


def _cluster_nodes(kubeconfig: str, master: str) -> tuple[Node, ...]:
    """All Nodes, of which a source only says this one's; an emulated overlay needs the other nodes' subnets."""
    from hansa.sources.kubernetes.client import read_nodes

    return asyncio.run(read_nodes(_connection(kubeconfig, master)))


def _read_once(text: str) -> options.Input:
    """The objects of a manifest file or folder; what cannot be read is noted, and the rest goes on."""
    from hansa.sources.files import read_once

    faults: list[Fault] = []
    changes = read_once(text, on_fault=faults.append)
    return options.Input(changes, tuple(faults))


def _gather(text: str, config: Config, *, kubeconfig: str, master: str) -> options.Input:
    """Everything that a source holds now, for commands that look once."""
    if not _is_kubernetes(text):
        return _read_once(text)
    from hansa.sources import gather

    objects = _source(text, config, kubeconfig=kubeconfig, master=master)
    nodes = _cluster_nodes(kubeconfig, master)
    return options.Input((*(Upsert(node) for node in nodes), *asyncio.run(gather(objects))))


def _rules(found: options.Input, config: Config, host: options.Host) -> RuleChanges:
    from hansa.pipeline import Pipeline

    pipeline = Pipeline(config, host.addresses)
    pipeline.apply(found.changes)
    message = pipeline.take()
    assert message is not None, "a source that was read to its end has said Synced for every kind"
    return message


def _addresses(host: options.Host, hns: str) -> Callable[[], Any] | None:
    """An emulated machine has the emulator's addresses; a real one is asked each time."""
    return None if hns == "native" else lambda: host.addresses


def _complain(found: options.Input) -> None:
    """Name what could not be used of the input; end with 1 if whole objects are missing because of it."""
    for line in (*found.skipped, *found.lost):
        print(f"hansa: {line}", file=sys.stderr)
    if found.lost:
        raise typer.Exit(1)


def _print_documents(data: Any, output: str, *, table: Callable[[Console], None]) -> None:
    match output:
        case "json":
            print(json.dumps(data, indent=2))
        case "yaml":
            print(yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120), end="")
        case "table":
            table(_console())
        case _:
            raise ConfigError(Fault("-o", f"{output!r} is no output form", "give table, json or yaml"))


class _Dumper(yaml.SafeDumper):
    """Every value in full: anchors help nobody who reads or greps."""

    def ignore_aliases(self, _: object) -> bool:
        return True


def _console() -> Console:
    """In a pipe or a file, tables are as wide as their content, as kubectl's are."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPE_WIDTH)

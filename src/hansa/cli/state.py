"""`hansa state`: what a source says, of the cluster or as one node sees it; and what a brain's nodes have applied."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from hansa.cli import inputs, options
from hansa.errors import ConfigError, Fault, SourceError

if TYPE_CHECKING:
    from hansa.brain.cluster import Cluster, ServiceState
    from hansa.services.model import GivenView, ServicePortView
    from hansa.sources import News, Source

# A person waits for this; a source waits its troubles out for ever.
COMPLETE_WITHIN_S = 15.0
FORMS = ("table", "yaml", "json", "kpng")


def state(
    *,
    source: Annotated[
        str,
        typer.Option(
            help="`kubernetes`, a manifest file or folder, kpng-file:FILE, or a brain: kpng://HOST:PORT or unix:/PATH."
        ),
    ] = options.KUBERNETES,
    node: Annotated[str, typer.Option(help="As this node sees it; default: the cluster, or what a brain tells.")] = "",
    nodes: Annotated[bool, typer.Option("--nodes", help="Of a brain: which node has applied which revision.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and print what changes.")] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write to this file instead, whole each time, so that nobody reads half of it.")
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, yaml, json, or kpng: KPNG's own file.")
    ] = "table",
    config: Annotated[Path | None, typer.Option(help="Settings in kube-proxy's words, as YAML.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value; wins.")] = None,
    kubeconfig: Annotated[str, typer.Option(help="kubeconfig file; default: $KUBECONFIG, else in-cluster.")] = "",
    master: Annotated[str, typer.Option(help="Address of the API server; wins over the kubeconfig's.")] = "",
) -> None:
    """Print Services and endpoints of a source: the cluster's, or with --node what that node may use, and why.

    With --nodes the brain's account of its nodes: what they were sent, what their hosts hold, what fails.
    """
    if output not in FORMS:
        raise ConfigError(Fault("-o", f"{output!r} is no output form", f"give one of {', '.join(FORMS)}"))
    inputs.need_grpc("state")
    from hansa.sources.kpng.target import GLOBAL, parse_target

    if nodes:
        print(asyncio.run(_nodes(source, output)), end="")
        return
    read = options.read_settings(config, settings or [], node).config
    follows = inputs.is_brain(source) and parse_target(source).api != GLOBAL
    if output == "kpng" and (node or follows):
        remedy = "leave --node out; of a brain ask ?api=global"
        raise ConfigError(Fault("-o", "KPNG's file holds a cluster, not what one node sees of it", remedy))
    # A brain must be told for which node it is asked; every other source is asked for all Nodes.
    asked = read if follows else replace(read, node_name="")
    objects = inputs.open_source(source, asked, lambda: inputs.connection(kubeconfig, master))
    shown = _Shown(node or (read.node_name if follows else ""), output, write)
    asyncio.run(_follow(objects, asked, shown, watch=watch))


@dataclass(frozen=True, slots=True)
class _Shown:
    """node: "" = the cluster. write: None = standard output."""

    node: str
    output: str
    write: Path | None


async def _follow(source: Source, config: Any, shown: _Shown, *, watch: bool) -> None:
    """Print once everything is there; then, if asked to, whatever is different, until interrupted."""
    from hansa.brain.cluster import Cluster

    held = _Held(Cluster(config))
    before: dict[str, Any] = {}
    is_complete = False
    batches = source.changes()
    while True:
        try:
            batch = await asyncio.wait_for(anext(batches), None if is_complete else COMPLETE_WITHIN_S)
        except TimeoutError:
            raise SourceError(f"not complete within {COMPLETE_WITHIN_S:g} s: {source.status}") from None
        held.take(batch)
        is_complete = is_complete or held.complete
        if not is_complete:
            continue
        if shown.node and not before and held.nodes and shown.node not in held.nodes:
            known = ", ".join(sorted(held.nodes)[:8]) + (", ..." if len(held.nodes) > 8 else "")
            raise ConfigError(Fault("--node", f"no Node is called {shown.node!r}", f"the source has {known}"))
        if not watch:
            _put(held.text(shown), shown.write)
            return
        now = held.documents(shown.node)
        if shown.output == "kpng" or shown.write is not None or not before:
            _put(held.text(shown), shown.write)
        else:
            _put(_differences(before, now, shown.output), None)
        before = now


class _Held:
    """What a source has said: objects of the cluster, or views that a brain has decided."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._views: dict[tuple[str, str], GivenView] = {}
        self._kinds: set[object] = set()

    def take(self, batch: Iterable[News]) -> None:
        from hansa.api.change import Synced
        from hansa.services.model import GivenView

        batch = tuple(batch)
        self._cluster.apply(batch)
        for one in batch:
            match one:
                case GivenView(service=service, ports=ports):
                    if ports:
                        self._views[service] = one
                    else:
                        self._views.pop(service, None)
                case Synced(kind):
                    self._kinds.add(kind)
                case _:
                    pass

    @property
    def complete(self) -> bool:
        from hansa.api.objects import Kind

        return self._kinds == set(Kind)

    @property
    def nodes(self) -> Collection[str]:
        """Names of the Nodes that the source has told of; none if a brain tells what a node needs."""
        return () if self._views else self._cluster.nodes

    def documents(self, node: str) -> dict[str, Any]:
        """By namespace/name: the Service with its endpoints, or its view, as plain data; Nodes under `node/NAME`."""
        if node:
            return {f"{key.namespace}/{key.name}": _view_document(key, view) for key, view in self.views(node)}
        found: dict[str, Any] = {}
        for name, one in sorted(self._cluster.nodes.items()):
            found[f"node/{name}"] = {"zone": one.zone, "addresses": [str(address) for address in one.addresses]}
        for key, state in sorted(self._cluster.services.items()):
            found[str(key)] = _service_document(state)
        return found

    def views(self, node: str) -> list[tuple[Any, tuple[ServicePortView, ...]]]:
        if self._views:
            return [(view.service, view.ports) for _, view in sorted(self._views.items())]
        point = self._cluster.viewpoint(node)
        views = ((key, state.view(point)) for key, state in sorted(self._cluster.services.items()))
        return [(key, view) for key, view in views if view]

    def text(self, shown: _Shown) -> str:
        match shown.output:
            case "json":
                return json.dumps(self.documents(shown.node), indent=2) + "\n"
            case "yaml":
                return yaml.safe_dump(self.documents(shown.node), sort_keys=False, width=120)
            case "kpng":
                return self._kpng()
            case _:
                return _table(
                    _view_rows(self.views(shown.node), shown.node) if shown.node else _service_rows(self._cluster)
                )

    def _kpng(self) -> str:
        from hansa.sources.kpng import file

        cluster = self._cluster
        pieces = [piece for state in cluster.services.values() for piece in state.pieces]
        services = [state.service for state in cluster.services.values()]
        return file.write_state([*cluster.nodes.values(), *services, *pieces])


def _view_document(key: Any, view: Sequence[ServicePortView]) -> dict[str, Any]:
    """The node API's own message, as data."""
    from google.protobuf.json_format import MessageToDict

    from hansa.sources.kpng import node

    found: dict[str, Any] = MessageToDict(node.service_message(key, view), preserving_proto_field_name=True)
    return {"ports": found.get("ports", [])}


def _service_document(state: ServiceState) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    from hansa.sources.kpng import cluster, shared

    endpoints = [
        MessageToDict(info, preserving_proto_field_name=True)
        for _, info in sorted(cluster.endpoint_infos(state.service, state.pieces), key=lambda one: one[0])
    ]
    return {"service": MessageToDict(shared.service_message(state.service)), "endpoints": endpoints}


def _service_rows(cluster: Cluster) -> list[list[str]]:
    rows = [["SERVICE", "TYPE", "CLUSTER IP", "PORTS", "ENDPOINTS"]]
    for key, state in sorted(cluster.services.items()):
        service = state.service
        ports = ", ".join(
            f"{one.port}{f':{one.node_port}' if one.node_port else ''}/{one.protocol}" for one in service.ports
        )
        found = {(one.address): one for piece in state.pieces for one in piece.endpoints}
        ready = sum(one.ready for one in found.values())
        addresses = ", ".join(map(str, service.cluster_ips)) or ("None" if service.headless else "-")
        rows.append([str(key), service.type.value, addresses, ports or "-", f"{ready} of {len(found)} ready"])
    return rows


def _view_rows(views: Iterable[tuple[Any, Sequence[ServicePortView]]], node_name: str) -> list[list[str]]:
    """One line for each port and family: where it is, and to whom traffic goes, by where it comes from."""
    from hansa.sources.kpng import node
    from hansa.sources.kpng.wire import nodev1

    rows = [["SERVICE PORT", "CLUSTER IP", "INTERNAL", "EXTERNAL", "SHORT-CIRCUIT", "LEFT OUT"]]
    for key, view in views:
        for one, message in zip(view, node.service_message(key, view).ports, strict=True):

            def told(decision: nodev1.Decision, message: nodev1.Port = message) -> str:
                if decision.verdict != nodev1.Verdict.FORWARD:
                    return nodev1.Verdict.Name(decision.verdict).lower()
                chosen = (message.endpoints[place] for place in decision.endpoints)
                texts = [f"{each.address}:{each.port}{'*' if each.node == node_name else ''}" for each in chosen]
                return ", ".join(texts) + (" (terminating)" if decision.fallback else "")

            external = told(message.external) if message.HasField("external") else "-"
            short = told(message.short_circuit) if message.HasField("short_circuit") else "-"
            out = ", ".join(f"{endpoint}: {reason.value}" for endpoint, reason in one.selection.excluded) or "-"
            frontend = f"{one.port.cluster_ip}:{one.port.port}/{one.port.name.protocol}"
            rows.append([str(one.port.name), frontend, told(message.internal), external, short, out])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _differences(before: dict[str, Any], after: dict[str, Any], output: str) -> str:
    """What is new, other or gone: a line each, or for json and yaml a document each."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        verb = "deleted" if name not in after else "added" if name not in before else "changed"
        if output == "table":
            lines.append(f"{verb} {name}\n")
        elif output == "json":
            lines.append(json.dumps({verb: name, "now": after.get(name)}) + "\n")
        else:
            lines.append("---\n" + yaml.safe_dump({verb: name, "now": after.get(name)}, sort_keys=False, width=120))
    return "".join(lines)


def _put(text: str, file: Path | None) -> None:
    if file is None:
        print(text, end="", flush=True)
        return
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as draft:
            draft.write(text)
        os.chmod(draft.name, 0o644)
        os.replace(draft.name, file)
    except OSError as error:
        raise ConfigError(Fault("--write", f"{file} cannot be written: {error.strerror}")) from None


async def _nodes(source: str, output: str) -> str:
    import grpc
    from google.protobuf.json_format import MessageToDict

    from hansa.sources.kpng.client import read_nodes
    from hansa.sources.kpng.target import parse_target

    if not inputs.is_brain(source):
        raise ConfigError(Fault("--nodes", "only a brain knows its nodes", "give --source kpng://HOST:PORT"))
    try:
        found = await read_nodes(parse_target(source))
    except grpc.aio.AioRpcError as error:
        raise SourceError(f"{source}: {error.code().name}: {error.details()}") from None
    if output != "table":
        data = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        return json.dumps(data, indent=2) + "\n" if output == "json" else yaml.safe_dump(data, sort_keys=False)
    rows = [["NODE", "API", "STATE", "APPLIED", "SENT", "PENDING", "DATAPLANE", "SEEN", "FIRST FAILURE"]]
    for one in found.nodes:
        told = one.HasField("report")
        report = one.report
        failure = f"{report.failures[0].key}: {report.failures[0].error}" if report.failures else "-"
        rows.append(
            [
                *(one.name, one.api, one.state),
                str(report.applied_revision) if told else "?",
                str(one.sent_revision),
                str(report.pending_count) if told else "?",
                report.dataplane or "?",
                f"{one.last_seen_s:.0f} s ago",
                failure,
            ]
        )
    return f"revision {found.revision}\n" + _table(rows)

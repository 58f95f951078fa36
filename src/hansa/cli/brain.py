"""`hansa brain`: watch the cluster once, and tell many nodes what concerns them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa import logs
from hansa.cli import inputs, options
from hansa.errors import ConfigError, Fault

if TYPE_CHECKING:
    from hansa.brain.cluster import Cluster
    from hansa.brain.server import Settings
    from hansa.sources import Source

LISTEN = "tcp://127.0.0.1:12090"


def brain(
    *,
    source: Annotated[
        str,
        typer.Option(
            help="`kubernetes`, a manifest file or folder, kpng-file:FILE, or another brain, kpng://HOST:PORT?api=global."
        ),
    ] = options.KUBERNETES,
    listen: Annotated[
        list[str] | None,
        typer.Option(help=f"tcp://HOST:PORT or unix:///PATH; may be repeated; default: {LISTEN}."),
    ] = None,
    tls_key: Annotated[str, typer.Option(help="The server's key; with it, everybody speaks TLS.")] = "",
    tls_cert: Annotated[str, typer.Option(help="The server's certificate.")] = "",
    tls_ca: Annotated[str, typer.Option(help="Only clients with a certificate of this CA are let in.")] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain connections from other machines, too: anybody may ask.")
    ] = False,
    metrics_bind_address: Annotated[
        str, typer.Option(help='Where /metrics, /healthz and /readyz are; "" = nowhere.')
    ] = "127.0.0.1:9099",
    config: Annotated[Path | None, typer.Option(help="Settings in kube-proxy's words, as YAML.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value; wins.")] = None,
    kubeconfig: Annotated[str, typer.Option(help="kubeconfig file; default: $KUBECONFIG, else in-cluster.")] = "",
    master: Annotated[str, typer.Option(help="Address of the API server; wins over the kubeconfig's.")] = "",
    verbosity: Annotated[
        int,
        typer.Option("-v", help="What is logged: 0 troubles and life cycle ... 2 syncs ... 4 steps.", min=0, max=10),
    ] = 2,
    logging_format: Annotated[str, typer.Option(help="text, as klog has it, or json.")] = "text",
) -> None:
    """Watch the cluster and tell nodes over gRPC what each has to do; `hansa run --source kpng://...` follows it.

    Serves hansa.node.v1 (decisions, and what nodes report), and KPNG's localv1 and globalv1 for its programs. Of the
    settings only proxyName and featureGates.AllowServiceExternalIPs matter here: all others are the nodes' own.
    """
    inputs.need_grpc("brain")
    from hansa.brain.cluster import Cluster
    from hansa.brain.server import Settings, TlsFiles, check, parse_listen
    from hansa.config import parse_bind_address

    try:
        metrics = parse_bind_address(metrics_bind_address, 9099) if metrics_bind_address else None
    except ValueError:
        raise ConfigError(
            Fault("--metrics-bind-address", f"{metrics_bind_address!r} is neither IP nor IP:port")
        ) from None
    tls = TlsFiles(tls_key, tls_cert, tls_ca) if tls_key or tls_cert or tls_ca else None
    addresses = tuple(parse_listen(each) for each in listen or [LISTEN])
    read = replace(options.read_settings(config, settings or [], "").config, node_name="")
    served = Settings(addresses, tls, insecure=insecure, metrics=metrics)
    check(served)
    logs.configure(options.log_config(logging_format, verbosity, ""))
    objects = inputs.open_source(source, read, lambda: inputs.connection(kubeconfig, master))
    raise typer.Exit(128 + asyncio.run(serve(Cluster(read), objects, served)))


async def serve(cluster: Cluster, source: Source, settings: Settings) -> int:
    """Until a signal, whose number is returned."""
    from hansa.brain.server import Brain
    from hansa.engine import wait_for_signal

    async with Brain(cluster, settings) as server:
        for target in server.targets:
            print(f"serving at {target}", flush=True)
        following = asyncio.create_task(server.follow(source))
        ended = asyncio.create_task(wait_for_signal())
        await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
        if following.done() and not following.cancelled() and (error := following.exception()) is not None:
            raise error  # a source waits its troubles out, so this is a bug; whoever supervises us starts us anew
        return await ended

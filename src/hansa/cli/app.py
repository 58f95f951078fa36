"""The commands: run, proxy, render, plan, trace, why, doctor, cleanup, heal, hns ls, hns import, hns serve, demo."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from hansa import __version__, logs
from hansa.api.change import Upsert
from hansa.cli import brain, inputs, lab, options, planes, screen, state
from hansa.errors import ConfigError, Fault
from hansa.explain.defects import Severity

if TYPE_CHECKING:
    from rich.console import Console

    from hansa.cli.doctor import Examined
    from hansa.config import Config
    from hansa.dataplanes.base import Change
    from hansa.hns.dumps import Dump
    from hansa.net import Address
    from hansa.rules.model import RuleChanges

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
app.add_typer(lab.lab_app, name="lab")
app.command()(brain.brain)
app.command()(state.state)

Source_ = Annotated[
    str,
    typer.Option(
        "--source",
        help="`kubernetes`, a manifest file or folder, - for standard input, or a brain: kpng://HOST:PORT, unix:/PATH.",
    ),
]
NodeName = Annotated[str, typer.Option(help="This node's name; default: the host name in lower case.")]
DataplaneName = Annotated[
    str,
    typer.Option(
        "--dataplane",
        help="windows, nftables, userspace, exec:COMMAND, exec+changes:COMMAND, or one that is installed beside hansa; "
        "default: windows on Windows and with --hns, nftables elsewhere.",
    ),
]
Hns = Annotated[
    str, typer.Option("--hns", help="native | emulator | emulator:FILE | remote:ADDRESS (see `hansa hns serve`).")
]
RunHns = Annotated[
    str,
    typer.Option(
        "--hns", help="Windows: native (default) | emulator | emulator:FILE | remote:ADDRESS (see `hansa hns serve`)."
    ),
]
PlanHns = Annotated[
    str,
    typer.Option(
        "--hns",
        help="Windows: native (default) | emulator | emulator:FILE | remote:ADDRESS, or dump:FILE,... "
        "(see `hansa hns import`).",
    ),
]
Network = Annotated[str, typer.Option(help="Pod network of a fresh emulated node: overlay or l2bridge.")]
Build = Annotated[str, typer.Option(help="Windows build of a fresh emulated node: ws2019, ws2022, ws2025, ...")]
DumpBuild = Annotated[
    str, typer.Option("--build", help="Windows build of a fresh emulated node, or of a dump that does not tell it.")
]
Lock = Annotated[
    Path | None,
    typer.Option("--lock", help="Lock file against a second instance; default: one per host, none with other HNS."),
]
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
    dataplane: DataplaneName = "",
    hns: RunHns = "",
    network: Network = "overlay",
    build: Build = "ws2022",
    hns_listen: Annotated[str, typer.Option(help="Offer the emulated HNS to other programs at this address.")] = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    lock: Lock = None,
    healthz_bind_address: Annotated[
        str | None,
        typer.Option(help='Where health is asked; default: healthzBindAddress, else 0.0.0.0:10256; "" = nowhere.'),
    ] = None,
    metrics_bind_address: Annotated[
        str | None,
        typer.Option(help='Where metrics are; default: metricsBindAddress, else 127.0.0.1:10249; "" = nowhere.'),
    ] = None,
    verbosity: Annotated[
        int,
        typer.Option("-v", help="How much is logged: 0 troubles, 2 syncs, 4 steps.", min=0, max=10),
    ] = 2,
    vmodule: Annotated[str, typer.Option(help="Other verbosities by file, like engine=4,health*=0; with text.")] = "",
    logging_format: Annotated[str, typer.Option(help="text, as klog has it, or json.")] = "text",
    profiling: Annotated[
        bool, typer.Option("--profiling", help="Let profiles be taken and -v be changed at the metrics port.")
    ] = False,
) -> None:
    """Be this node's service proxy until a signal ends it. Ending leaves all rules in place."""
    logs.configure(options.log_config(logging_format, verbosity, vmodule))
    chosen = planes.choose(dataplane, hns)
    windows = planes.WindowsOptions(hns, network, build)
    from hansa import engine as engine_module
    from hansa import health
    from hansa.config import OFF
    from hansa.health_pages import Shown

    flags = {"healthzBindAddress": healthz_bind_address, "metricsBindAddress": metrics_bind_address}
    off = {name: OFF if value == "" else value for name, value in flags.items()}
    read = options.read_settings(config, settings or [], node_name, flags=off)
    for note in read.notes:
        logging.getLogger("hansa.config").warning("setting without effect: %s", note)
    inputs.hold_lock(context.with_resource, lock, "hansa run", always=windows.native)
    connect = partial(inputs.connection, kubeconfig, master)
    objects = inputs.open_source(source, read.config, connect)
    known = inputs.nodes_ahead(source, connect, fresh=windows.fresh)
    options.check_node_name(read.config, known)
    plane = context.with_resource(planes.open_plane(chosen, read.config, known, windows))
    api, objects = objects, plane.attend(objects)
    if hns_listen:
        context.with_resource(options.offer(plane.host, hns_listen))
    engine = engine_module.Engine(
        plane.config, [objects], dataplane=plane.dataplane(), read_addresses=plane.read_addresses
    )
    inputs.attend(engine, api)
    inputs.warn_of_node(engine, plane.config, chosen)
    shown = Shown(flags=_given_flags(context), profiling=profiling)
    ended_by = asyncio.run(health.run(engine, plane.config, source=api, shown=shown))
    if ended_by is not None:
        raise typer.Exit(128 + ended_by)  # as shells count, and as kube-proxy ends


def _given_flags(context: typer.Context) -> dict[str, str]:
    """Every flag of the command with its value, as /flagz has them."""
    found = {}
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        text = ",".join(value) if isinstance(value, list) else "" if value is None else str(value)
        found[parameter.opts[0].lstrip("-")] = text.lower() if isinstance(value, bool) else text
    return found


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
def proxy(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[FLAGS]", help="kube-proxy's flags.")] = None,
) -> None:
    """Be kube-proxy: its flags, its configuration file, its ports. `hansa proxy --help` lists all flags."""
    from hansa.cli import proxy as kube_proxy

    raise typer.Exit(kube_proxy.main(arguments or []))


@app.command()
def render(
    context: typer.Context,
    *,
    source: Source_,
    node_name: NodeName = "",
    dataplane: DataplaneName = "",
    network: Network = "overlay",
    build: Build = "ws2022",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    output: Annotated[
        str, typer.Option("-o", "--output", help="text (nftables' own, its default), table, json or yaml.")
    ] = "",
) -> None:
    """Print the objects that this node's kernel would have to hold. No host is read or written.

    nftables: the tables of both families as `nft -f` reads them. Windows: endpoints are named by their addresses, since
    only a host gives them ids. Objects of the input that cannot be used are named on standard error, one line each; the
    exit code is then 1.
    """
    chosen = planes.choose(dataplane)
    from hansa.explain import text

    read = options.read_settings(config, settings or [], node_name)
    found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    windows = planes.WindowsOptions("emulator", network, build)
    plane = _open(context, chosen, found=found, config=read.config, windows=windows)
    rendered = plane.render(_rules(found, plane.config, plane.rendered_addresses))
    if rendered.text is not None and output in ("", "text"):
        print(rendered.text, end="")
    else:
        _print_documents(rendered.documents, output or "yaml", table=rendered.table)
    for line in text.shortfall_lines(rendered.shortfalls):
        print(f"hansa: shortfall: {line}", file=sys.stderr)
    _complain(found)


@app.command()
def plan(
    context: typer.Context,
    *,
    source: Source_,
    node_name: NodeName = "",
    dataplane: DataplaneName = "",
    hns: PlanHns = "",
    network: Network = "overlay",
    build: DumpBuild = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    output: Output = "table",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 5 if something would change.")] = False,
) -> None:
    """Print what a sync would change on this host now. Reads the host, writes nothing; nftables needs root for that.

    With `--hns dump:FILE,...` it does what `hansa doctor` does: a listing may lack what a plan needs.
    """
    chosen = planes.choose(dataplane, hns)
    from hansa.explain import text

    read = options.read_settings(config, settings or [], node_name)
    found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    windows = planes.WindowsOptions(hns, network, build)
    plane = _open_with_pods(context, chosen, found=found, config=read.config, windows=windows)
    if plane.host is not None and plane.host.dump is not None:
        from hansa.cli import doctor as looking

        diagnosis = looking.diagnose_windows(plane.host, plane.config, found)
        examined = looking.Examined(plane.config.node_name, diagnosis=diagnosis)
        _report(examined, found, plane, output=output)
        if exit_code and not diagnosis.healthy:
            raise typer.Exit(5)
        return
    steps = plane.plan(_rules(found, plane.config, plane.addresses))

    def table(console: Console) -> None:
        if steps:
            console.print(text.change_table(steps))
        else:
            console.print("Nothing to do: the host holds what it should.")

    _print_documents(text.change_data(steps), output, table=table)
    _complain(found)
    if steps and exit_code:
        raise typer.Exit(5)


@app.command()
def trace(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[LAB] PACKET",
            help="SOURCE -> ADDRESS:PORT/tcp; also `pod ADDRESS`, `node`, and svc/NAMESPACE/NAME:PORT as the target. "
            "With a lab: pod/NAMESPACE/NAME, node/NAME, outside or an address -> one of these, svc/ or vip/.",
        ),
    ],
    *,
    source: Annotated[
        str, typer.Option("--source", help="Without a lab: `kubernetes`, or a manifest file or folder, or -.")
    ] = "",
    node_name: NodeName = "",
    dataplane: DataplaneName = "",
    hns: PlanHns = "",
    network: Network = "overlay",
    build: DumpBuild = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json or yaml; with a lab: table, json, mermaid or svg.")
    ] = "table",
    live: Annotated[
        bool, typer.Option("--live", help="Wait for such packets on this node, and tell what they meet (root).")
    ] = False,
    seconds: Annotated[float, typer.Option(help="How long --live waits at most.", min=0.1, max=3600.0)] = 10.0,
    packets: Annotated[int, typer.Option(help="How many packets --live waits for.", min=1, max=100)] = 1,
    fault: lab.Faults = None,
    heal: lab.Heal = False,
    endpoint: Annotated[str, typer.Option(help="In a lab: the endpoint to pick wherever it may be picked.")] = "",
) -> None:
    """Follow one packet: what the rules say of it, which objects it meets, and whether the two agree.

    It is about the first packet of a connection; nothing is sent. With --live the kernel tells which rules a real one
    meets, by a table that is gone when the command ends, however it ends. Exits with 5 if rules and objects, or rules
    and real packets, disagree, and if no such packet came by. With --hns, or on Windows, it is followed through the
    virtual switch by what HNS holds; a fresh emulated node is programmed first.

    With a LAB (see `hansa lab run`) the whole connection is followed, from node to node and back, and the place named
    where it dies; `-o mermaid` and `-o svg` draw it.
    """
    if len(words) == 2:
        cluster = lab.open_lab(Path(words[0]), fault, heal=heal)
        lab.trace_lab(cluster, words[1], endpoint=endpoint, output=output)
        return
    if len(words) != 1 or not source:
        raise ConfigError(
            Fault("trace", "needs a lab and a packet, or a packet and --source", "see `hansa trace --help`")
        )
    packet = words[0]
    chosen = planes.choose(dataplane, hns)
    if chosen not in planes.DATAPLANES:
        names = ", ".join(planes.DATAPLANES)
        raise ConfigError(Fault("--dataplane", f"no packet can be followed through {chosen}", f"give one of {names}"))
    if live and chosen != planes.NFTABLES:
        raise ConfigError(Fault("--live", f"real packets are not followed through {chosen}", "leave it out"))
    read = options.read_settings(config, settings or [], node_name)
    found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    windows = planes.WindowsOptions(hns, network, build)
    plane = _open_with_pods(context, chosen, found=found, config=read.config, windows=windows)
    if chosen == planes.WINDOWS:
        fits = _trace_on_windows(packet, plane, found=found, fresh=windows.fresh, output=output)
    else:
        wait = _Wait(seconds, packets) if live else None
        fits = _trace_on_nftables(packet, plane, found=found, wait=wait, output=output)
    _complain(found)
    if not fits:
        raise typer.Exit(5)


@dataclass(frozen=True, slots=True)
class _Wait:
    """What `--live` waits for: how long at most, and for how many packets."""

    seconds: float
    count: int


def _trace_on_windows(packet: str, plane: planes.Plane, *, found: options.Input, fresh: bool, output: str) -> bool:
    """Print what an HNS does with a packet; whether that is what the rules say, or a known limit of HNS."""
    from hansa.explain import hns_trace

    pipeline, message = inputs.rules_of(found, plane.config, plane.addresses)
    met = planes.trace_on_windows(packet, plane, pipeline, message, fresh=fresh)
    lines = hns_trace.on_node_lines(met)
    _print_documents(hns_trace.on_node_data(met), output, table=lambda _: print("\n".join(lines)))
    return not met.differences or bool(met.limits)


def _trace_on_nftables(
    packet: str, plane: planes.Plane, *, found: options.Input, wait: _Wait | None, output: str
) -> bool:
    """Print what the tables do with a packet; whether that is what the rules say.

    wait: for real packets, which must come and meet the same; None = for none, and no host is asked.
    """
    from hansa.explain import trace as tracing

    addresses = plane.rendered_addresses if wait is None else plane.addresses
    pipeline, message = inputs.rules_of(found, plane.config, addresses)
    explained = tracing.explain_by_nftables(tracing.read_packet(packet, pipeline), pipeline, message)
    data, lines = tracing.explanation_data(explained), tracing.explanation_lines(explained)
    fits = not explained.differences
    if wait is not None:
        if output == "table":
            print("\n".join(lines), flush=True)
            lines = []
        seen = planes.follow(explained, seconds=wait.seconds, count=wait.count)
        data["seen"] = [tracing.seen_data(one, explained) for one in seen]
        lines += [line for one in seen for line in tracing.seen_lines(one, explained)]
        lines += [] if seen else [f"no such packet came by within {wait.seconds:g} s"]
        fits = fits and bool(seen) and not any(tracing.seen_difference(one, explained) for one in seen)
    _print_documents(data, output, table=lambda _: print("\n".join(lines)))
    return fits


@app.command()
def why(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[LAB] QUESTION",
            help="endpoint ADDRESS [for svc/NAMESPACE/NAME], frontend ADDRESS:PORT/tcp, frontend node:PORT/tcp, "
            "frontend svc/NAMESPACE/NAME, or loadbalancer ID.",
        ),
    ],
    *,
    source: Annotated[
        str, typer.Option("--source", help="Without a lab: `kubernetes`, or a manifest file or folder, or -.")
    ] = "",
    node_name: NodeName = "",
    dataplane: DataplaneName = "",
    hns: PlanHns = "",
    network: Network = "overlay",
    build: DumpBuild = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
    fault: lab.Faults = None,
) -> None:
    """Give the reasons for an endpoint, a frontend or a load balancer, stage by stage: who has decided what, and why.

    Nothing is decided again: services, rules, render and plan have given the reasons. With --hns, or on Windows, HNS is
    asked what it holds; nothing is written. A LAB (see `hansa lab run`) answers for each of its nodes.
    """
    from hansa.cli import why as asking

    if len(words) == 2:
        asking.print_answers(asking.ask_lab(Path(words[0]), words[1], node_name, fault), output)
        return
    if len(words) != 1 or not source:
        raise ConfigError(
            Fault("why", "needs a lab and a question, or a question and --source", "see `hansa why --help`")
        )
    from hansa.explain.why import Case, read_question
    from hansa.explain.why import why as answer

    question = read_question(words[0])
    chosen = planes.choose(dataplane, hns)
    read = options.read_settings(config, settings or [], node_name)
    found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    windows = planes.WindowsOptions(hns, network, build)
    plane = _open_with_pods(context, chosen, found=found, config=read.config, windows=windows)
    pipeline, message = inputs.rules_of(found, plane.config, plane.addresses)
    if plane.host is None:
        case = Case(pipeline, message, shortfalls=plane.render(message).shortfalls)
    else:  # a fresh dataplane has nothing to wait for, so any time is as good
        situation = options.windows_dataplane(plane.host, plane.config).survey(message, now=0.0)
        case = Case(pipeline, message, situation, situation.wanted.shortfalls)
    asking.print_answers({plane.config.node_name: answer(case, question)}, output)
    _complain(found)


@app.command()
def doctor(
    context: typer.Context,
    *,
    source: Source_ = options.KUBERNETES,
    node_name: NodeName = "",
    dataplane: DataplaneName = "",
    hns: PlanHns = "",
    network: Network = "overlay",
    build: DumpBuild = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    lock: Lock = None,
    output: Output = "table",
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 5 if something is wrong, with 6 if there are only warnings.")
    ] = False,
) -> None:
    """Look at this node and its way to the API server, and name what is wrong, how bad it is and what to do.

    The API server: whether it answers, lets this account read what hansa needs, knows this Node, and has the same time.
    The node: other proxies, what the kernel or HNS lacks, settings, rules that are missing or left over. Whoever
    programs a Windows node may be asked about: kube-proxy's objects are read like hansa's own, and each finding names
    the known defect that it looks like. Nothing is written; on Linux the rules can be read by root only.
    """
    chosen = planes.choose(dataplane, hns)
    if chosen not in planes.DATAPLANES:
        names = ", ".join(planes.DATAPLANES)
        raise ConfigError(Fault("--dataplane", f"the doctor does not know what {chosen} needs", f"give one of {names}"))
    from hansa.cli import doctor as looking
    from hansa.explain import checkup

    read = options.read_settings(config, settings or [], node_name)
    checks: tuple[checkup.Check, ...] = ()
    found: options.Input | None = None
    api = None
    if inputs.is_kubernetes(source):
        api = looking.ask_api(inputs.connection(kubeconfig, master), read.config)
        checks = checkup.check_api(api, read.config)
    if api is None or (api.readable and api.nodes):
        found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
    windows = planes.WindowsOptions(hns, network, build)
    plane = _open(context, chosen, found=found, config=read.config, windows=windows)
    if plane.host is None:
        plan = None if found is None else partial(_plan, plane, found)
        examined = looking.examine_linux(plane.config, plan, lock)
    elif windows.native:
        examined = looking.examine_windows(plane.host, plane.config, found, lock)
    else:
        diagnosis = None if found is None else looking.diagnose_windows(plane.host, plane.config, found)
        examined = looking.Examined(plane.config.node_name, diagnosis=diagnosis)
    examined = replace(examined, checks=(*checks, *examined.checks))
    _report(examined, found, plane, output=output)
    if exit_code:
        _exit_by(examined.worst)


def _plan(plane: planes.Plane, found: options.Input) -> tuple[Change, ...]:
    return tuple(plane.plan(_rules(found, plane.config, plane.addresses)))


@app.command()
def cleanup(
    context: typer.Context,
    *,
    dataplane: DataplaneName = "",
    hns: RunHns = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted, delete nothing.")] = False,
    node_name: NodeName = "",
    config: ConfigFile = None,
    settings: Set = None,
    lock: Lock = None,
    output: Output = "table",
) -> None:
    """Hand a node back: delete what is hansa's, and nothing else. Stop `hansa run` first.

    nftables: the tables `ip hansa` and `ip6 hansa`; established connections go on. Windows: load balancers and remote
    endpoints, told by the marks on the objects and by the journal, so give the settings that `hansa run` had; local
    endpoints are never deleted.
    """
    chosen = planes.choose(dataplane, hns)
    planes.check_cleanable(chosen)
    read = options.read_settings(config, settings or [], node_name)
    if not dry_run:
        inputs.hold_lock(context.with_resource, lock, "hansa cleanup", always=planes.WindowsOptions(hns).native)
    if chosen == planes.NFTABLES:
        cleaned = planes.clean_nftables(dry_run=dry_run)
    else:
        cleaned = planes.clean_windows(
            context.with_resource(options.open_filled(hns or "native")), read.config, dry_run=dry_run
        )
    from hansa.explain import text

    headline = "would be deleted" if dry_run else "deleted"

    def table(console: Console) -> None:
        if cleaned.changes:
            console.print(text.change_table(cleaned.changes))
        others = "" if cleaned.kept is None else f", {sum(not each.ours for each in cleaned.kept)} of others left alone"
        console.print(f"{len(cleaned.changes)} {headline}{others}")

    data = {
        "dryRun": dry_run,
        "deleted": text.change_data(cleaned.changes),
        "kept": [
            {"kind": each.kind, "key": each.key, "id": each.guid.lower(), "why": each.why, "ours": each.ours}
            for each in cleaned.kept or ()
        ],
        "failed": list(cleaned.failed),
    }
    _print_documents(data, output, table=table)
    ours = [each for each in cleaned.kept or () if each.ours]
    for each in ours:
        print(f"hansa: left in place: {each.kind} {each.key} ({each.guid.lower()}): {each.why}", file=sys.stderr)
    if cleaned.saved is not None:
        print(f"hansa: the emulated node is written back to {cleaned.saved}", file=sys.stderr)
    for line in cleaned.failed:
        print(f"hansa: host: {line}; run it again", file=sys.stderr)
    if cleaned.failed:
        raise typer.Exit(4)
    if not dry_run and not ours and chosen == planes.WINDOWS and read.config.windows.journal_path:
        Path(read.config.windows.journal_path).unlink(missing_ok=True)  # the next start is a first one


@app.command()
def heal(
    context: typer.Context,
    service: Annotated[
        str,
        typer.Argument(
            help="NAMESPACE/NAME or NAMESPACE/NAME:PORT, PORT a name or a number; NAME if it is the only one."
        ),
    ],
    *,
    source: Annotated[
        str, typer.Option("--source", help="Without a running hansa: `kubernetes`, or a manifest file or folder, or -.")
    ] = "",
    node_name: NodeName = "",
    hns: RunHns = "",
    config: ConfigFile = None,
    settings: Set = None,
    kubeconfig: Kubeconfig = "",
    master: Master = "",
    lock: Lock = None,
    metrics_bind_address: Annotated[
        str | None,
        typer.Option(
            help="Where the running hansa has its metrics; default: metricsBindAddress, else 127.0.0.1:10249."
        ),
    ] = None,
    output: Output = "table",
) -> None:
    """Make the load balancers of one Service anew on this Windows node, though they look right.

    For when a Service, DNS say, fails here and `hansa doctor` finds nothing: HNS may say one thing and the kernel do
    another. The hansa that runs on this node is asked to do it; with --source it is done without one. Each frontend is
    away for one call to HNS; connections through it may break. No other Service is touched.
    """
    from hansa.cli import heal as healing
    from hansa.healing import healed_lines

    read = options.read_settings(config, settings or [], node_name, flags={"metricsBindAddress": metrics_bind_address})
    if source:
        windows = planes.WindowsOptions(hns)
        inputs.hold_lock(context.with_resource, lock, "hansa heal", always=windows.native)
        found = _gather(source, read.config, kubeconfig=kubeconfig, master=master)
        plane = _open(context, planes.WINDOWS, found=found, config=read.config, windows=windows)
        pipeline, message = inputs.rules_of(found, plane.config, plane.addresses)
        data = healing.alone(plane, service, pipeline, message)
        if plane.host is not None and (saved := plane.host.save()) is not None:
            print(f"hansa: the emulated node is written back to {saved}", file=sys.stderr)
    else:
        data = healing.ask(read.config.metrics_bind_address, service)
    _print_documents(data, output, table=lambda _: print("\n".join(healed_lines(data))))
    if not data["ok"]:
        raise typer.Exit(4)


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
    word, _, rest = hns.partition(":")
    if word == "dump" and rest:
        listing = options.list_dump(rest.split(","))
    else:
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


@hns_app.command("import")
def hns_import(
    files: Annotated[
        list[str],
        typer.Argument(help="Output of hnsdiag or PowerShell, or a folder that collectlogs.ps1 has filled."),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to put the node, for --hns emulator:FILE.")],
    build: Annotated[str, typer.Option(help="Its Windows build; default: as the files tell, else ws2022.")] = "",
    node_ip: Annotated[
        list[str] | None, typer.Option(help="The node's address, if no network tells it; may be repeated.")
    ] = None,
) -> None:
    """Make an emulated node of what was saved of a real one: `hnsdiag list all -d`, or `Get-Hns... | ConvertTo-Json`.

    What cannot be understood is named on standard error, one line each; the exit code is then 1.
    """
    from hansa.net import parse_address

    dump = options.read_dump(files)
    try:
        addresses = [parse_address(each) for each in node_ip or []]
    except ValueError as error:
        raise ConfigError(Fault("--node-ip", str(error), "write an IP address")) from error
    emulator = options.emulated_dump(dump, addresses, build)
    try:
        output.write_text(emulator.dump(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(Fault("-o", f"{output} cannot be written: {error.strerror}")) from error
    counts = (
        f"{len(dump.networks)} networks, {len(dump.endpoints)} endpoints, {len(dump.load_balancers)} load balancers"
    )
    print(f"{output}: {counts}; {emulator.build.windows}, HNS {emulator.build.version}")
    _complain_of_dump(dump)


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
    changes = inputs.read_once(source).changes if source else ()
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
    demo_module.run(screen.console(), network=network, build=build)


# --- shared by the commands ---


def _gather(text: str, config: Config, *, kubeconfig: str, master: str) -> options.Input:
    """Everything that a source holds now, for commands that look once."""
    if inputs.is_manifests(text):
        return inputs.read_once(text)
    from hansa.sources import gather

    connect = partial(inputs.connection, kubeconfig, master)
    objects = inputs.open_source(text, config, connect)
    if not inputs.is_kubernetes(text):
        return options.Input(asyncio.run(gather(objects)))
    nodes = inputs.cluster_nodes(connect())
    return options.Input((*(Upsert(node) for node in nodes), *asyncio.run(gather(objects))))


def _open(
    context: typer.Context,
    chosen: str,
    *,
    found: options.Input | None,
    config: Config,
    windows: planes.WindowsOptions,
) -> planes.Plane:
    """The node of a command, until it ends. found: None = what the cluster holds is not known."""
    known = options.nodes(found.changes) if found is not None else []
    options.check_node_name(config, known)
    return context.with_resource(planes.open_plane(chosen, config, known, windows))


def _open_with_pods(
    context: typer.Context, chosen: str, *, found: options.Input, config: Config, windows: planes.WindowsOptions
) -> planes.Plane:
    """The same; on a fresh emulated node with the pods that its CNI would have added."""
    plane = _open(context, chosen, found=found, config=config, windows=windows)
    if windows.fresh and plane.host is not None and plane.host.emulator is not None:
        from hansa.lab.cni import add_local_pods

        add_local_pods(plane.host.emulator, found.changes, plane.config.node_name)
    return plane


def _rules(found: options.Input, config: Config, addresses: frozenset[Address]) -> RuleChanges:
    return inputs.rules_of(found, config, addresses)[1]


def _report(examined: Examined, found: options.Input | None, plane: planes.Plane, *, output: str) -> None:
    """Print what the doctor found, and complain of what could not be read."""
    from hansa.explain import text

    diagnosis = examined.diagnosis
    data: dict[str, Any] = {"node": examined.node_name, "checks": text.check_data(examined.checks)}
    if diagnosis is not None:
        data |= text.finding_data(diagnosis)
    if examined.changes is not None:
        data["changes"] = text.change_data(examined.changes)

    def table(console: Console) -> None:
        if examined.checks:
            console.print(text.check_table(examined.checks))
        if examined.changes:
            console.print()
            console.print(text.change_table(examined.changes))
        if diagnosis is None:
            return
        if examined.checks:
            console.print()
        if diagnosis.findings:
            console.print(text.finding_table(diagnosis))
            console.print()
        else:
            console.print("Nothing is wrong: the host holds what it should.")
        for line in text.finding_notes(diagnosis):
            console.print(line, markup=False)
        if diagnosis.foreign:
            console.print(f"Of other software, never touched: {len(diagnosis.foreign)}")
        for one in diagnosis.foreign:
            console.print(f"  {one.kind} {one.key} ({one.guid.lower()}): {one.why}", markup=False)

    _print_documents(data, output, table=table)
    dump = plane.host.dump if plane.host is not None else None
    if dump is not None and not plane.config.windows.source_vip_endpoint:
        for vip in plane.config.windows.source_vip:
            print(f"hansa: dump: taken as source VIP: {vip}", file=sys.stderr)
    if found is not None:
        _complain(found)
    if dump is not None:
        _complain_of_dump(dump)


def _exit_by(worst: Severity | None) -> None:
    """End with the code of the worst finding; notes are none."""
    match worst:
        case Severity.ERROR:
            raise typer.Exit(5)
        case Severity.WARNING:
            raise typer.Exit(6)
        case Severity.NOTE | None:
            pass


def _complain_of_dump(dump: Dump) -> None:
    """Say what a listing does not tell, and what of it could not be read; end with 1 if objects are missing."""
    if dump.hints.untold:
        fields = sorted({field for one in dump.hints.untold.values() for field in one.fields})
        flags = "some of their flags"
        told = f"{len(dump.hints.untold)} load balancers"
        print(f"hansa: dump: not told of {told}: {', '.join((*fields, flags))}; not compared", file=sys.stderr)
    for one in dump.unread:
        print(f"hansa: dump: {one}", file=sys.stderr)
    if dump.unread:
        raise typer.Exit(1)


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
            table(screen.console())
        case _:
            raise ConfigError(Fault("-o", f"{output!r} is no output form", "give table, json or yaml"))


class _Dumper(yaml.SafeDumper):
    """Every value in full: anchors help nobody who reads or greps."""

    def ignore_aliases(self, _: object) -> bool:
        return True

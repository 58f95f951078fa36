"""`hansa doctor`: looks at this node and at its way to the API server. What it means, `explain.checkup` decides.

Nothing is written anywhere, and a part that cannot be looked at is a finding, not the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from hansa.cli import inputs, options
from hansa.config import Config
from hansa.errors import DataplaneError
from hansa.explain import checkup
from hansa.explain.checkup import ApiFacts, Check, LinuxFacts, NodeFacts, WindowsFacts
from hansa.explain.defects import Severity
from hansa.lock import default_path, holder

if TYPE_CHECKING:
    from hansa.cli.options import Host, Input
    from hansa.dataplanes.base import Change
    from hansa.dataplanes.windows.compare import Situation
    from hansa.explain.doctor import Diagnosis
    from hansa.sources.kubernetes.kubeconfig import Connection

KUBE_PROXY_NAMES = ("kube-proxy", "kube-proxy.exe")
ATTEMPT_S = 10.0  # a server that does not answer a person within this is not there


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of it. diagnosis: of the objects in HNS; changes: what an nftables sync would do; None = not known."""

    node_name: str
    checks: tuple[Check, ...] = ()
    diagnosis: Diagnosis | None = None
    changes: tuple[Change, ...] | None = None

    @property
    def worst(self) -> Severity | None:
        objects = self.diagnosis.findings if self.diagnosis is not None else ()
        return checkup.worst([*(each.severity for each in self.checks), *(each.severity for each in objects)])


def ask_api(connection: Connection, config: Config) -> ApiFacts:
    """Try everything that hansa has to be allowed, once."""
    from hansa.api.objects import Kind
    from hansa.sources.kubernetes.client import ClientSettings, try_access

    settings = ClientSettings(connect_timeout_s=ATTEMPT_S, list_idle_s=ATTEMPT_S, watch_idle_s=ATTEMPT_S)
    tried = asyncio.run(try_access(connection, config, settings))
    return ApiFacts(
        server=connection.server,
        tried=tried,
        warnings=connection.warnings,
        is_encrypted=connection.server.startswith("https:"),
        checks_server=not connection.skip_tls_verify,
        is_loopback=connection.is_loopback,
        nodes=tried[Kind.NODE, "list"].found,
    )


def _name_of(process: psutil.Process) -> str:
    """ "" = it has ended, or may not be seen from here."""
    try:
        return str(process.name())
    except (psutil.Error, OSError):
        return ""


def look_at_node(lock: Path | None) -> NodeFacts:
    """Which proxies work on this machine, as far as this process may see others."""
    named = [process.pid for process in psutil.process_iter() if _name_of(process) in KUBE_PROXY_NAMES]
    return NodeFacts(tuple(sorted(named)), holder(lock or default_path()))


def look_at_linux(config: Config, plan: Callable[[], tuple[Change, ...]] | None) -> LinuxFacts:
    """This network namespace. plan: what a sync would do, None = what is wanted is not known."""
    from hansa.dataplanes.nftables import host, needs
    from hansa.netlink.socket import NetfilterSocket

    families = host.node_families()
    wanted = needs.wanted_settings(config.linux, core_count=host.core_count(), families=families)
    count, most = host.setting(needs.CONNECTION_COUNT), host.setting(needs.MAX_ENTRIES)
    problem = ""
    missing: tuple[needs.Missing, ...] = ()
    rivals: tuple[needs.Rival, ...] = ()
    changes: tuple[Change, ...] | None = None
    try:
        with closing(NetfilterSocket()) as kernel:
            missing = host.probe(kernel, families)
            if not missing:
                rivals = host.find_rivals(kernel)
        if not missing and plan is not None:
            changes = plan()
    except DataplaneError as error:
        problem = str(error)
    return LinuxFacts(
        problem=problem,
        missing=missing,
        rivals=rivals,
        settings=tuple((each, host.setting(each.path)) for each in wanted),
        forwarding={family: host.setting(needs.FORWARDING[family]) for family in families},
        connections=(count, most) if count is not None and most is not None else None,
        bridged=host.setting(checkup.BRIDGED),
        changes=changes,
    )


def examine_linux(config: Config, plan: Callable[[], tuple[Change, ...]] | None, lock: Path | None) -> Examined:
    """This node under the nftables dataplane. plan: what a sync would do, None = what is wanted is not known."""
    node = look_at_node(lock)
    facts = look_at_linux(config, plan)
    checks = (*checkup.check_node(node, config), *checkup.check_linux(facts, config, runs=bool(node.holder)))
    return Examined(config.node_name, checks, changes=facts.changes)


def examine_windows(host: Host, config: Config, found: Input | None, lock: Path | None) -> Examined:
    """This machine and its HNS. found: the cluster's objects, None = they could not be read."""
    from hansa.hns.api import HnsError
    from hansa.hns.client import HnsClient

    diagnosis, network, problem, version = None, "", "", None
    ports: tuple[str, ...] = ()
    try:
        version = HnsClient(host.api).version()
        if found is not None:
            situation = _survey_windows(host, config, found)
            diagnosis = _diagnose(situation, host, config, found)
            network = situation.observed.network.name if situation.observed.network is not None else ""
            ports = _look_at_ports(situation, host)
    except HnsError as error:
        problem = f"HNS does not answer: {error}"
    except DataplaneError as error:
        problem = str(error)
    facts = WindowsFacts(problem, version, network, ports)
    checks = (*checkup.check_node(look_at_node(lock), config), *checkup.check_windows(facts, config))
    return Examined(config.node_name, checks, diagnosis)


def diagnose_windows(host: Host, config: Config, found: Input) -> Diagnosis:
    """What is wrong with the objects in an HNS. Raises DataplaneError."""
    return _diagnose(_survey_windows(host, config, found), host, config, found)


def _survey_windows(host: Host, config: Config, found: Input) -> Situation:
    _, message = inputs.rules_of(found, config, host.addresses)
    return options.windows_dataplane(host, config).survey(message, now=time.monotonic())


def _look_at_ports(situation: Situation, host: Host) -> tuple[str, ...]:
    """F45, as a running hansa tells it."""
    from hansa.dataplanes.windows.node_ports import port_conditions, unread

    try:
        taken = host.taken_ports()
    except OSError as error:
        return (unread(error),)
    return tuple(port_conditions(taken, situation))


def _diagnose(situation: Situation, host: Host, config: Config, found: Input) -> Diagnosis:
    from hansa.explain.doctor import diagnose
    from hansa.hns.dumps import NO_HINTS

    return diagnose(
        situation,
        hints=host.dump.hints if host.dump else NO_HINTS,
        named=options.named_addresses(found.changes),
        root_name=config.windows.root_endpoint_name,
    )

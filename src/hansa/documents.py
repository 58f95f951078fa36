"""The documents that the metrics port shows besides metrics: the configuration, and what hansa thinks. Pure.

`config_document` is `make_config` backwards: what it gives, `make_config` reads into the same Config. `state_head` and
`service_documents` are /debug/hansa/state: what is open on the host; per Service its view with reasons, and its rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

from hansa.api.objects import ServiceKey
from hansa.config import OFF, BindAddress, Config, NodePortAddresses, go_duration
from hansa.dataplanes.base import Outcome, Result
from hansa.engine import EngineState, SyncRecord
from hansa.health_answers import Moment, rfc3339
from hansa.pipeline import Pipeline
from hansa.rules.model import Action, Drop, Forward, Origin, Reject, Rule
from hansa.services.model import Endpoint, ServicePortView

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"


def config_document(config: Config, mode: str) -> dict[str, Any]:
    """The settings in force, as a KubeProxyConfiguration with hansa's own keys besides. None: left as the host has it.

    The section of the mode repeats what stands at top level, where readers of kube-proxy's /configz look for it.
    """
    windows, linux = config.windows, config.linux
    periods = {
        "syncPeriod": go_duration(config.sync_period_s),
        "minSyncPeriod": go_duration(config.min_sync_period_s),
        "masqueradeAll": config.masquerade_all,
    }
    section = {"nftables": periods} if mode == "nftables" else {"iptables": periods}
    return {
        "kind": "KubeProxyConfiguration",
        "apiVersion": API_VERSION,
        "mode": mode,
        "hostnameOverride": config.node_name,
        "bindAddress": _joined(config.bind_addresses),
        "healthzBindAddress": _bind_address(config.healthz_bind_address),
        "metricsBindAddress": _bind_address(config.metrics_bind_address),
        "bindAddressHardFail": config.bind_address_hard_fail,
        "clusterCIDR": _joined(config.cluster_cidrs),
        "detectLocalMode": config.detect_local_mode.value,
        "detectLocal": {
            "bridgeInterface": config.bridge_interface,
            "interfaceNamePrefix": config.interface_name_prefix,
        },
        "nodePortAddresses": _node_port_addresses(config.node_port_addresses),
        "featureGates": {"AllowServiceExternalIPs": config.allow_external_ips},
        **section,
        **periods,
        "fullSyncPeriod": go_duration(config.full_sync_period_s),
        "fullCheckPeriod": go_duration(config.full_check_period_s),
        "localhostNodePorts": config.localhost_node_ports,
        "proxyName": config.proxy_name,
        "conntrack": {
            "maxPerCore": linux.max_per_core,
            "min": linux.min_entries,
            "tcpEstablishedTimeout": _duration_or_none(linux.tcp_established_timeout_s),
            "tcpCloseWaitTimeout": _duration_or_none(linux.tcp_close_wait_timeout_s),
            "tcpBeLiberal": linux.tcp_be_liberal,
            "udpTimeout": _duration_or_none(linux.udp_timeout_s),
            "udpStreamTimeout": _duration_or_none(linux.udp_stream_timeout_s),
        },
        "ipForward": linux.ip_forward,
        "oomScoreAdj": linux.oom_score_adj,
        "winkernel": {
            "networkName": windows.network_name,
            "sourceVip": _joined(windows.source_vip),
            "enableDSR": windows.enable_dsr,
            "rootHnsEndpointName": windows.root_endpoint_name,
            "forwardHealthCheckVip": windows.forward_health_check_vip,
            "sourceVipEndpoint": windows.source_vip_endpoint,
            "createSourceVip": windows.create_source_vip,
            "journalPath": windows.journal_path,
            "callBudget": windows.call_budget,
            "passBudget": go_duration(windows.pass_budget_s),
            "verifyPerPeriod": windows.verify_per_period,
            "dnsProbePeriod": go_duration(windows.dns_probe_period_s),
        },
        "takeover": windows.takeover,
        "criticalServices": list(windows.critical),
    }


def _joined(values: Iterable[object]) -> str:
    return ",".join(str(value) for value in values)


def _bind_address(address: BindAddress | None) -> str:
    return OFF if address is None else str(address)


def _node_port_addresses(accepted: NodePortAddresses) -> list[str]:
    return ["primary"] if accepted.primary else [str(prefix) for prefix in accepted.prefixes]


def _duration_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else go_duration(seconds)


# --- /debug/state ---


def state_head(state: EngineState, moment: Moment, *, node_name: str, mode: str) -> dict[str, Any]:
    """Everything but the Services: how things stand, and what the host lacks and why."""

    from hansa.explain.text import change_data, shortfall_data  # brings tables for terminals along, hence only here

    def at(monotonic: float | None) -> str | None:
        return None if monotonic is None else rfc3339(moment.wall_at(monotonic))

    report, last = state.report, state.last
    return {
        "node": node_name,
        "mode": mode,
        "now": rfc3339(moment.wall),
        "ready": state.ready,
        "sources": list(state.sources),
        "families": {
            str(family): {"waitingSince": at(one.waiting_since), "lastOk": at(one.last_ok_at)}
            for family, one in sorted(state.families.items())
        },
        "lastSync": last
        and {
            "number": last.number,
            "kind": str(last.kind),
            "started": at(last.started_at),
            "finished": at(last.finished_at),
            "ok": last.ok,
            "done": last.done,
            "failed": last.failed,
            "error": last.error or None,
        },
        "runningSince": at(state.running_since),
        "hostState": report and report.state.value,
        "retryAt": at(report.retry_at if report else None),
        "pending": list(report.pending) if report else [],
        "retries": [
            {
                "key": one.key,
                "owners": list(one.owners),
                "class": one.error_class,
                "error": one.error,
                "failures": one.failures,
                "retryAt": at(one.retry_at),
            }
            for one in (report.waiting if report else ())
        ],
        "shortfalls": shortfall_data(report.shortfalls) if report else [],
        "steps": _steps(one for one in report.results if one.outcome is not Outcome.DONE) if report else [],
        "objects": {kind: counts._asdict() for kind, counts in report.objects.items()} if report else {},
        "conditions": list(report.conditions) if report else [],
        "drift": change_data(report.drift) if report else [],
        "healthCheckPorts": [
            {
                "service": str(key.service),
                "family": str(key.family),
                "port": one.port,
                "localEndpoints": one.local_count,
            }
            for key, one in sorted(state.health_checks.items())
        ],
    }


def sync_document(record: SyncRecord, results: Iterable[Result], moment: Moment) -> dict[str, Any]:
    """One sync with all its steps. moment: taken when it ended, so that its times can be told by the wall clock."""
    return {
        "number": record.number,
        "kind": str(record.kind),
        "started": rfc3339(moment.wall_at(record.started_at)),
        "finished": rfc3339(moment.wall_at(record.finished_at)),
        "ok": record.ok,
        "hostState": record.state.value if record.state is not None else None,
        "error": record.error or None,
        "pending": record.pending,
        "steps": _steps(results),
    }


def _steps(results: Iterable[Result]) -> list[dict[str, Any]]:
    return [
        {
            "verb": one.change.verb.value,
            "kind": one.change.kind,
            "key": one.change.key,
            "why": one.change.why,
            "owners": list(one.change.owners),
            "outcome": one.outcome.value,
            "error": one.error or None,
        }
        for one in results
    ]


def service_keys(pipeline: Pipeline) -> list[ServiceKey]:
    """Every Service known or with rules in force, by name."""
    return sorted(pipeline.services | pipeline.rules.services)


def service_documents(pipeline: Pipeline, keys: Iterable[ServiceKey]) -> list[dict[str, Any]]:
    """View and rules of Services; the view is as of now, the rules are those of the last message."""
    return [
        {
            "service": str(key),
            "ports": [_port_document(one) for one in pipeline.view(key)],
            "rules": [_rule_document(rule, pipeline) for rule in pipeline.rules.rules_of(key)],
        }
        for key in keys
    ]


def rule_documents(pipeline: Pipeline, keys: Iterable[ServiceKey]) -> list[dict[str, Any]]:
    """The rules of Services alone, as of the last message."""
    return [
        {"service": str(key), "rules": [_rule_document(rule, pipeline) for rule in pipeline.rules.rules_of(key)]}
        for key in keys
    ]


def _port_document(view: ServicePortView) -> dict[str, Any]:
    port, selection = view.port, view.selection
    return {
        "name": str(port.name),
        "family": str(port.family),
        "protocol": str(port.name.protocol),
        "port": port.port,
        "internalPolicy": port.internal_policy.value,
        "externalPolicy": port.external_policy.value,
        "topology": selection.topology.value,
        "cluster": _endpoints(selection.cluster),
        "local": _endpoints(selection.local),
        "excluded": [{"endpoint": str(endpoint), "why": why.value} for endpoint, why in selection.excluded],
        "localReady": sorted(str(address) for address in view.local_ready),
    }


def _endpoints(endpoints: tuple[Endpoint, ...] | None) -> list[str] | None:
    return None if endpoints is None else [str(one) for one in endpoints]


def _rule_document(rule: Rule, pipeline: Pipeline) -> dict[str, Any]:
    return {
        "frontend": str(rule.key),
        "kind": rule.kind.value,
        "owner": str(rule.owner),
        "inForce": pipeline.rules.get(rule.key) == rule,
        "actions": {origin.value: _action_document(rule.action(origin)) for origin in Origin},
        "sourceRanges": None if rule.source_ranges is None else [str(one) for one in rule.source_ranges],
        "affinityTimeoutSeconds": rule.affinity_timeout_s,
    }


def _action_document(action: Action) -> dict[str, Any]:
    match action:
        case Forward(endpoints, masquerade, because):
            return {
                "action": "forward",
                "endpoints": _endpoints(endpoints),
                "masquerade": masquerade,
                "because": because.value,
            }
        case Drop(because):
            return {"action": "drop", "because": because.value}
        case Reject(because):
            return {"action": "reject", "because": because.value}
        case _:
            assert_never(action)

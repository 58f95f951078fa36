"""The table of metrics, the text in which Prometheus reads it, and what the engine makes the numbers say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.dictionary_dataplane import RETRY_S
from tests.engine_stage import API, LISTED, START, Stage, in_loop, stage

from hansa import metrics as table
from hansa.api.change import Delete, Malformed, Upsert
from hansa.api.objects import Kind, ObjectKey
from hansa.dataplanes.base import (
    Change,
    ConntrackRun,
    HostState,
    ObjectCounts,
    Outcome,
    Result,
    Shortfall,
    SyncReport,
    Verb,
)
from hansa.engine import Engine, SyncRecord
from hansa.errors import Fault
from hansa.health_answers import Moment
from hansa.meter import FeatureGate, Identity, Meter, ProcessFacts
from hansa.metrics import METRICS, NOT_SERVED, Metric, Metrics, MetricType, go_number
from hansa.net import IPFamily
from hansa.schedule import RunKind
from hansa.sources.kubernetes.calls import ApiCall
from hansa.testing import L1, L2, NODE, NODE_IP, R1, endpoint_slice, node, service

laws = settings(max_examples=200, deadline=None, derandomize=True)
B1 = [str(0.001 * 2**n) for n in range(15)]
B2 = ["0.25", "0.5", *map(str, range(1, 60)), *map(str, range(60, 116, 5)), *map(str, range(120, 301, 30))]

# What dashboards for kube-proxy 1.36 ask for: operations.md 11, without what NOT_SERVED leaves out.
KUBE_PROXY: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "sync_proxy_rules_duration_seconds": ("histogram", ("ip_family",), B1),
    "sync_full_proxy_rules_duration_seconds": ("histogram", ("ip_family",), B1),
    "sync_partial_proxy_rules_duration_seconds": ("histogram", ("ip_family",), B1),
    "sync_proxy_rules_last_timestamp_seconds": ("gauge", ("ip_family",), []),
    "sync_proxy_rules_last_queued_timestamp_seconds": ("gauge", ("ip_family",), []),
    "network_programming_duration_seconds": ("histogram", ("ip_family",), B2),
    "sync_proxy_rules_endpoint_changes_pending": ("gauge", (), []),
    "sync_proxy_rules_endpoint_changes_total": ("counter", (), []),
    "sync_proxy_rules_service_changes_pending": ("gauge", (), []),
    "sync_proxy_rules_service_changes_total": ("counter", (), []),
    "sync_proxy_rules_no_local_endpoints_total": ("gauge", ("traffic_policy", "ip_family"), []),
    "proxy_healthz_total": ("counter", ("code",), []),
    "proxy_livez_total": ("counter", ("code",), []),
    "sync_proxy_rules_nftables_sync_failures_total": ("counter", ("ip_family",), []),
    "conntrack_reconciler_sync_duration_seconds": ("histogram", ("ip_family",), B1),
    "conntrack_reconciler_deleted_entries_total": ("counter", ("ip_family",), []),
}
REST_S = ["0.005", "0.025", "0.1", "0.25", "0.5", "1", "2", "4", "8", "15", "30", "60"]
REST_BYTES = [
    "64",
    "256",
    "512",
    "1024",
    "4096",
    "16384",
    "65536",
    "262144",
    "1.048576e+06",
    "4.194304e+06",
    "1.6777216e+07",
]
BUILD = ("major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler")
# The same for what every component of Kubernetes has.
KUBERNETES: dict[str, tuple[str, tuple[str, ...], list[str], str]] = {
    "rest_client_requests_total": ("counter", ("code", "method", "host"), [], "ALPHA"),
    "rest_client_request_duration_seconds": ("histogram", ("verb", "host"), REST_S, "ALPHA"),
    "rest_client_rate_limiter_duration_seconds": ("histogram", ("verb", "host"), REST_S, "ALPHA"),
    "rest_client_request_size_bytes": ("histogram", ("verb", "host"), REST_BYTES, "ALPHA"),
    "rest_client_response_size_bytes": ("histogram", ("verb", "host"), REST_BYTES, "ALPHA"),
    "rest_client_request_retries_total": ("counter", ("code", "verb", "host"), [], "ALPHA"),
    "kubernetes_build_info": ("gauge", (*BUILD, "platform"), [], "BETA"),
    "kubernetes_feature_enabled": ("gauge", ("name", "stage"), [], "BETA"),
    "registered_metrics_total": ("counter", ("stability_level", "deprecated_version"), [], "BETA"),
    "disabled_metrics_total": ("counter", (), [], "BETA"),
    "hidden_metrics_total": ("counter", (), [], "BETA"),
}


def with_a_value_for_each() -> Metrics:
    made = Metrics()
    for metric in METRICS:
        labels = tuple(f"some {name}" for name in metric.labels)
        match metric.type:
            case MetricType.COUNTER:
                made.add(metric, 3, *labels)
            case MetricType.GAUGE:
                made.set(metric, 2.5, *labels)
            case MetricType.HISTOGRAM:
                made.observe(metric, metric.buckets[1], *labels)
    return made


def test_what_is_served_is_what_the_table_says() -> None:
    """Read back by prometheus-client's own parser."""
    text = with_a_value_for_each().text()
    families = {one.name: one for one in text_string_to_metric_families(text)}
    for metric in METRICS:
        # The parser names counters without `_total`.
        name = metric.name.removesuffix("_total") if metric.type is MetricType.COUNTER else metric.name
        family = families.pop(name)
        assert (family.type, family.documentation) == (metric.type.value, metric.help)
        names = {f"some {label}" for label in metric.labels}
        for sample in family.samples:
            assert {value for label, value in sample.labels.items() if label != "le"} == names
        buckets = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
        assert buckets == ([*map(go_number, metric.buckets), "+Inf"] if metric.buckets else [])
        for sample in family.samples:
            if metric.type is not MetricType.HISTOGRAM:
                assert sample.name == metric.name
                assert sample.value == (3 if metric.type is MetricType.COUNTER else 2.5)
    assert families == {}, "served, but not in the table"


def test_kube_proxys_metrics_have_its_names_types_labels_and_buckets() -> None:
    ours = {metric.name: metric for metric in METRICS if metric.name.startswith("kubeproxy_")}
    assert ours.keys() == {f"kubeproxy_{name}" for name in KUBE_PROXY}
    for name, (kind, labels, buckets) in KUBE_PROXY.items():
        metric = ours[f"kubeproxy_{name}"]
        assert (metric.type.value, metric.labels) == (kind, labels), name
        assert [go_number(bucket) for bucket in metric.buckets] == buckets, name
        assert metric.help.startswith("[ALPHA] "), name


def test_metrics_of_every_component_have_its_names_types_labels_and_buckets() -> None:
    ours = {metric.name: metric for metric in METRICS if metric.stability and not metric.name.startswith("kubeproxy_")}
    assert ours.keys() == KUBERNETES.keys()
    for name, (kind, labels, buckets, stability) in KUBERNETES.items():
        metric = ours[name]
        assert (metric.type.value, metric.labels, metric.stability) == (kind, labels, stability), name
        assert [go_number(bucket) for bucket in metric.buckets] == buckets, name


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_and_each_other(metric: Metric) -> None:
    assert metric.name in KUBERNETES or re.fullmatch(r"(kubeproxy|hansa|process)_[a-z_]+[a-z]", metric.name)
    assert [one.name for one in METRICS].count(metric.name) == 1
    assert not any(re.fullmatch(f"(?:{name.replace('*', '.*')})", metric.name) for name in NOT_SERVED)
    assert bool(metric.buckets) is (metric.type is MetricType.HISTOGRAM)
    assert metric.help
    assert not metric.help.endswith(".")
    for unit in ("seconds", "bytes"):
        assert (metric.unit == unit) is (unit in metric.name.removesuffix("_total").rsplit("_", 1)[-1:])
    if metric.type is MetricType.COUNTER:
        assert metric.name.endswith("_total")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (-2.5, "-2.5"),
        (0.25, "0.25"),
        (16.384, "16.384"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (100000.0, "100000"),
        (999999.5, "999999.5"),
        (1000000.0, "1e+06"),
        (4194304.0, "4.194304e+06"),
        (1764000012.345, "1.764000012345e+09"),
        (1e21, "1e+21"),
        (1.5e-300, "1.5e-300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_as_go_writes_them(value: float, text: str) -> None:
    assert go_number(value) == text


@laws
@given(st.floats(allow_nan=False))
def test_numbers_read_back(value: float) -> None:
    assert float(go_number(value)) == value


def test_labels_and_help_are_escaped() -> None:
    made = Metrics()
    odd = 'a"b\\c\nd'
    made.add(table.SYNCS, 1, odd, "ok")
    (family,) = [one for one in text_string_to_metric_families(made.text()) if one.name == "hansa_syncs"]
    assert family.samples[0].labels == {"kind": odd, "result": "ok"}


def test_a_labelled_metric_appears_with_its_first_series_and_nothing_has_a_birthday() -> None:
    made = Metrics()
    assert "hansa_drift_total" not in made.text()
    assert "hansa_frontends" not in made.text()
    assert "kubeproxy_sync_proxy_rules_service_changes_total 0\n" in made.text()
    made.add(table.DRIFT, 1, "create", "chain")
    assert 'hansa_drift_total{verb="create",object="chain"} 1\n' in made.text()
    assert "_created" not in with_a_value_for_each().text()


def test_totals_counted_elsewhere_only_rise_and_gauges_lose_series_that_are_gone() -> None:
    made = Metrics()
    for total, shown in ((3, 3), (3, 3), (2, 3), (5, 5)):
        made.raise_to(table.SOURCE_FAILURES, total)
        assert f"hansa_source_failures_total {shown}\n" in made.text()
    made.set_all(table.SHORTFALLS, {("a",): 1, ("b",): 2})
    made.set_all(table.SHORTFALLS, {("b",): 1})
    assert 'feature="a"' not in made.text()
    assert 'hansa_shortfalls{feature="b"} 1\n' in made.text()


def test_a_metric_is_only_used_as_what_it_is() -> None:
    with pytest.raises(AssertionError, match="hansa_frontends is a gauge"):
        Metrics().add(table.FRONTENDS, 1)


# --- what the engine makes of it ---

PROCESS = ProcessFacts(cpu_s=1.5, resident_bytes=2**20, virtual_bytes=2**30, open_fds=9, max_fds=None, started_at=5.0)


class Watched:
    """Metrics of an engine, as a scrape would see them."""

    def __init__(self, on: Stage, dataplane: str = "dictionary") -> None:
        self.on = on
        self.metrics = Metrics()
        self.meter = Meter(self.metrics, Identity("1.2", "3.11", dataplane))
        on.engine.on_sync(lambda record, report: self.meter.observe(record, report, on.engine.state))

    def scrape(self) -> Mapping[str, float]:
        """Values by `name{label="value"}`, without `_bucket`s that are 0."""
        moment = Moment(self.on.clock.now(), self.on.clock.wall())
        self.meter.refresh(self.on.engine.state, moment, PROCESS)
        found = {}
        for line in self.metrics.text().splitlines():
            if not line.startswith("#"):
                key, _, value = line.rpartition(" ")
                found[key] = float(value)
        return found


@pytest.mark.scenario("t189")
@in_loop
async def test_o2_one_sample_in_the_bucket_of_the_time_that_it_took() -> None:
    async with stage() as on:
        watched = Watched(on)
        await on.synced(*START)
        await on.pass_time(5)
        await on.synced(Upsert(endpoint_slice("web-a", [L2], trigger_time=on.clock.wall() - 0.4)))
        found = watched.scrape()
        name = "kubeproxy_network_programming_duration_seconds"
        assert found[f'{name}_count{{ip_family="IPv4"}}'] == 1
        assert found[f'{name}_bucket{{ip_family="IPv4",le="0.25"}}'] == 0
        assert found[f'{name}_bucket{{ip_family="IPv4",le="0.5"}}'] == 1
        assert found[f'{name}_sum{{ip_family="IPv4"}}'] == pytest.approx(0.4)
        assert f'{name}_count{{ip_family="IPv6"}}' not in found


@pytest.mark.scenario("t190")
@in_loop
async def test_o3_o5_no_sample_for_a_time_before_the_start_and_for_deleted_slices() -> None:
    async with stage() as on:
        watched = Watched(on)
        before = on.clock.wall() - 10
        await on.synced(*START, Upsert(endpoint_slice("web-a", [L2], trigger_time=before)))
        await on.pass_time(5)
        piece = endpoint_slice("web-b", [R1], trigger_time=on.clock.wall())
        await on.synced(Upsert(piece), Delete(piece.object_key))
        assert not any("network_programming" in key for key in watched.scrape())


@in_loop
async def test_o6_samples_of_a_failed_sync_are_kept_until_it_succeeds() -> None:
    async with stage() as on:
        watched = Watched(on)
        await on.synced(*START)
        await on.pass_time(5)
        on.dataplane.host.away = True
        await on.synced(Upsert(endpoint_slice("web-a", [L2], trigger_time=on.clock.wall())))
        assert not any("network_programming" in key for key in watched.scrape())
        on.dataplane.host.away = False
        await on.pass_time(RETRY_S)
        assert watched.scrape()['kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}'] == 1


@in_loop
async def test_syncs_their_kinds_results_and_times() -> None:
    async with stage() as on:
        watched = Watched(on)
        asked_at = on.clock.wall()
        await on.synced(*START)
        await on.pass_time(5)
        on.dataplane.host.away = True
        await on.synced(Upsert(API))
        found = watched.scrape()
        assert found['hansa_syncs_total{kind="full",result="ok"}'] == 1
        assert found['hansa_syncs_total{kind="partial",result="incomplete"}'] == 1
        for family in ("IPv4", "IPv6"):
            label = f'{{ip_family="{family}"}}'
            assert found[f"kubeproxy_sync_proxy_rules_duration_seconds_count{label}"] == 2
            assert found[f"kubeproxy_sync_full_proxy_rules_duration_seconds_count{label}"] == 1
            assert found[f"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{label}"] == 1
            assert found[f"kubeproxy_sync_proxy_rules_last_timestamp_seconds{label}"] == asked_at
            assert found[f"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{label}"] == asked_at + 5
        assert found['hansa_sync_phase_duration_seconds_count{phase="host"}'] == 2
        assert found['hansa_host_state{state="unavailable"}'] == 1
        assert found['hansa_host_state{state="healthy"}'] == 0
        await on.pass_time(1)
        found = watched.scrape()
        assert found['hansa_waiting_seconds{ip_family="IPv4"}'] == 1
        assert found["hansa_next_retry_seconds"] == RETRY_S - 1
        on.dataplane.before_sync = fail
        await on.pass_time(RETRY_S)
        assert watched.scrape()['hansa_syncs_total{kind="partial",result="error"}'] == 1


def fail() -> None:
    raise ZeroDivisionError("a bug")


@in_loop
async def test_drift_found_and_healed_steps_and_failures() -> None:
    async with stage() as on:
        watched = Watched(on)
        await on.synced(*START, Upsert(API))
        assert watched.scrape()['hansa_start_steps{verb="create"}'] == 2
        web_key, api_key = sorted(on.dataplane.host.frontends, key=str)
        on.dataplane.host.refuse.add(api_key)
        on.dataplane.host.frontends.clear()
        await on.pass_time(30)
        found = watched.scrape()
        assert found['hansa_drift_total{verb="create",object="frontend"}'] == 2
        assert found['hansa_drift_healed_total{verb="create",object="frontend"}'] == 1
        assert found['hansa_steps_total{verb="create",object="frontend",outcome="done"}'] == 3
        assert found['hansa_steps_total{verb="create",object="frontend",outcome="failed"}'] == 1
        assert found['hansa_step_failures_total{class="other"}'] == 1
        assert found['hansa_pending_objects{ip_family="IPv4"}'] == 1
        assert found['hansa_pending_objects{ip_family="IPv6"}'] == 0
        assert found['hansa_start_steps{verb="create"}'] == 2, "what happens later is no part of the start"
        assert found['hansa_host_calls_total{verb="call",result="ok"}'] == 4
        assert str(web_key) in on.host


@in_loop
async def test_objects_changes_and_what_cannot_be_used() -> None:
    async with stage() as on:
        watched = Watched(on)
        await on.synced(*START)
        await on.pass_time(5)
        broken = Malformed(ObjectKey(Kind.SERVICE, "d", "odd"), (Fault("spec", "odd"),))
        await on.synced(broken, Upsert(endpoint_slice("web-a", [L2])))
        await on.say(Upsert(API))
        found = watched.scrape()
        assert found['hansa_objects{kind="Service"}'] == 2
        assert found['hansa_objects{kind="EndpointSlice"}'] == 1
        assert found['hansa_malformed_objects{kind="Service"}'] == 1
        assert found['hansa_malformed_objects{kind="Node"}'] == 0
        assert found['hansa_changes_total{kind="Service"}'] == 3
        assert found["kubeproxy_sync_proxy_rules_service_changes_total"] == 6, "once for each family"
        assert found["kubeproxy_sync_proxy_rules_endpoint_changes_total"] == 2
        assert found["kubeproxy_sync_proxy_rules_service_changes_pending"] == 1
        assert found["kubeproxy_sync_proxy_rules_endpoint_changes_pending"] == 0
        assert found["hansa_frontends"] == 1
        assert watched.scrape()['hansa_changes_total{kind="Service"}'] == 3, "a scrape counts nothing"
        await on.pass_time(1)
        assert watched.scrape()["kubeproxy_sync_proxy_rules_service_changes_pending"] == 0


@in_loop
async def test_r12_ports_that_policy_local_leaves_without_endpoints() -> None:
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    async with stage() as on:
        watched = Watched(on)
        inside = service("web", internal_policy="Local")
        outside = service("api", cluster_ips=["10.96.0.11"], type="NodePort", external_policy="Local", node_port=30080)
        await on.synced(
            Upsert(NODE),
            Upsert(inside),
            Upsert(outside),
            Upsert(endpoint_slice("web-a", [R1])),
            Upsert(endpoint_slice("api-a", [R1], service="api")),
            *LISTED,
        )
        found = watched.scrape()
        assert found[f'{name}{{traffic_policy="internal",ip_family="IPv4"}}'] == 1
        assert found[f'{name}{{traffic_policy="external",ip_family="IPv4"}}'] == 1
        assert found[f'{name}{{traffic_policy="internal",ip_family="IPv6"}}'] == 0
        await on.pass_time(5)
        await on.synced(Upsert(endpoint_slice("web-a", [R1, L1])), Delete(ObjectKey(Kind.ENDPOINT_SLICE, "d", "api-a")))
        found = watched.scrape()
        assert found[f'{name}{{traffic_policy="internal",ip_family="IPv4"}}'] == 0
        assert found[f'{name}{{traffic_policy="external",ip_family="IPv4"}}'] == 0, "nobody has endpoints: R1, not R3"


@in_loop
async def test_only_the_families_of_the_nodes_addresses_have_series() -> None:
    async with stage(read_addresses=lambda: frozenset({NODE_IP})) as on:
        watched = Watched(on)
        await on.synced(Upsert(node("n1", addresses=["192.0.2.1"])), *START[1:])
        assert not any("IPv6" in key for key in watched.scrape())


@in_loop
async def test_process_facts_and_identity() -> None:
    async with stage() as on:
        found = Watched(on).scrape()
        assert found['hansa_build_info{version="1.2",python="3.11",dataplane="dictionary"}'] == 1
        assert found["process_cpu_seconds_total"] == 1.5
        assert found["process_resident_memory_bytes"] == 2**20
        assert "process_max_fds" not in found


def test_what_others_tell() -> None:
    made = Metrics()
    meter = Meter(made, Identity("1.2", "3.11.4", "windows", "linux/amd64", "cpython"))
    meter.called(ApiCall("GET", "api:6443", "200", retried_code="503"))
    meter.called(ApiCall("POST", "api:6443", "201", 0.2, request_bytes=300, response_bytes=700, waited_s=1.5))
    meter.called(ApiCall("POST", "api:6443", "<error>", 0.2))
    meter.event("SyncFailing", "sent")
    meter.log_suppressed(3)
    meter.features([FeatureGate("WinDSR", "", enabled=True), FeatureGate("Other", "ALPHA", enabled=False)])
    text = made.text()
    post = 'verb="POST",host="api:6443"'
    for line in (
        'rest_client_requests_total{code="200",method="GET",host="api:6443"} 1',
        'rest_client_requests_total{code="<error>",method="POST",host="api:6443"} 1',
        'rest_client_request_retries_total{code="503",verb="GET",host="api:6443"} 1',
        f"rest_client_request_duration_seconds_count{{{post}}} 2",
        f'rest_client_request_size_bytes_bucket{{{post},le="512"}} 2',
        f"rest_client_response_size_bytes_sum{{{post}}} 700",
        f"rest_client_rate_limiter_duration_seconds_sum{{{post}}} 1.5",
        'hansa_events_total{reason="SyncFailing",outcome="sent"} 1',
        "hansa_log_suppressed_total 3",
        'kubernetes_feature_enabled{name="WinDSR",stage=""} 1',
        'kubernetes_feature_enabled{name="Other",stage="ALPHA"} 0',
        'kubernetes_build_info{major="1",minor="36",git_version="v1.36.2",git_commit="",git_tree_state="",'
        'build_date="",go_version="python3.11.4",compiler="cpython",platform="linux/amd64"} 1',
        f'registered_metrics_total{{stability_level="ALPHA",deprecated_version=""}} {len(KUBE_PROXY) + 6}',
        "disabled_metrics_total 0",
        "hidden_metrics_total 0",
    ):
        assert f"{line}\n" in text, line
    assert 'rest_client_request_duration_seconds_count{verb="GET"' not in text, "a watch has no duration"


def recorded(report: SyncReport, engine: Engine, dataplane: str = "windows", **fields: Any) -> str:
    """A scrape after one run with this report."""
    made = Metrics()
    record = SyncRecord(1, RunKind.PARTIAL, 0.0, 0.1, state=report.state, ok=report.ok, **fields)
    meter, state = Meter(made, Identity("1", "3", dataplane)), replace(engine.state, report=report)
    meter.observe(record, report, state)
    meter.refresh(state, Moment(0.1, 0.1), PROCESS)
    return made.text()


@in_loop
async def test_what_only_some_dataplanes_report() -> None:
    async with stage() as on:
        gap = Change(Verb.REPLACE, "load balancer", "k", "w", disruptive=True)
        report = SyncReport(
            HostState.HEALTHY,
            results=(Result(gap, Outcome.DONE), Result(gap, Outcome.FAILED, "no", error_class="rejected")),
            shortfalls=(
                Shortfall("source-ranges", None, None, "no"),
                Shortfall("source-ranges", None, None, "also no"),
            ),
            pending=("k",),
            pending_by_family={IPFamily.IPV6: ("k",)},
            host_calls=3,
            calls_by_verb={"create": 2, "open": 1},
            call_errors={("create", "0x803b0013"): 1},
            call_times=(("open", 0.25),),
            objects={"load balancer": ObjectCounts(3, 2, 1), "frontend": ObjectCounts(5)},
            adopted={"load balancer": 2},
            backing_off={"conflict": 1},
            conntrack={IPFamily.IPV4: ConntrackRun(0.5, 7)},
        )
        text = recorded(report, on.engine)
        assert 'hansa_disruptive_steps_total{object="load balancer"} 1\n' in text
        assert 'hansa_step_failures_total{class="rejected"} 1\n' in text
        assert 'hansa_shortfalls{feature="source-ranges"} 2\n' in text
        assert 'hansa_host_calls_total{verb="create",result="ok"} 1\n' in text
        assert 'hansa_host_calls_total{verb="create",result="error"} 1\n' in text
        assert 'hansa_host_calls_total{verb="open",result="error"} 0\n' in text
        assert 'hansa_host_call_errors_total{verb="create",code="0x803b0013"} 1\n' in text
        assert 'hansa_host_call_duration_seconds_sum{verb="open"} 0.25\n' in text
        assert 'hansa_host_objects{object="load balancer",state="desired"} 3\n' in text
        assert 'hansa_host_objects{object="load balancer",state="foreign"} 1\n' in text
        assert 'hansa_host_objects{object="frontend",state="desired"} 5\n' in text
        assert 'hansa_host_objects{object="frontend",state="foreign"}' not in text
        assert 'hansa_adopted_objects{object="load balancer"} 2\n' in text
        assert 'hansa_backoff_objects{class="conflict"} 1\n' in text
        assert 'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 7\n' in text
        assert 'kubeproxy_conntrack_reconciler_sync_duration_seconds_sum{ip_family="IPv4"} 0.5\n' in text
        assert "nftables_sync_failures" not in text
        text = recorded(report, on.engine, "nftables")
        assert 'nftables_sync_failures_total{ip_family="IPv6"} 1\n' in text
        assert 'nftables_sync_failures_total{ip_family="IPv4"}' not in text
        away = SyncReport(HostState.UNAVAILABLE)
        assert 'nftables_sync_failures_total{ip_family="IPv4"} 1\n' in recorded(away, on.engine, "nftables")

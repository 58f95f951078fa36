"""Every metric of hansa in one table: name, type, labels, help, unit. And the text in which Prometheus reads them.

kube-proxy's metrics keep its names, types, labels and buckets, so that dashboards and alerts go on working; hansa's own
begin with `hansa_`. What of kube-proxy's is not here, and why, says `NOT_SERVED`. Nothing in this module knows where
values come from: `hansa.meter` feeds it after each sync and at each scrape.

Evidence: service-semantics section 18; operations.md 11; the text format is Prometheus's exposition format 0.0.4 with
numbers as Go writes them.

>>> metrics = Metrics()
>>> metrics.observe(NETWORK_PROGRAMMING, 0.4, "IPv4")
>>> [line for line in metrics.text().splitlines() if 'le="0.5"' in line]
['kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"} 1']
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar, assert_never

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# kube-proxy serves the same; scrapers choose their parser by it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"


class MetricType(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. unit: as the name tells it, "" for plain numbers. buckets: upper bounds of a histogram without +Inf."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def stability(self) -> str:
        """ALPHA, BETA or STABLE, as kube-proxy's begin their help; "" for hansa's own and those of every process."""
        return self.help[1:].partition("]")[0] if self.help.startswith("[") else ""

    @property
    def is_own(self) -> bool:
        """Whether it is hansa's own rather than kube-proxy's or common to all exporters."""
        return self.name.startswith("hansa_")


_TABLE: list[Metric] = []


def _row(
    name: str, kind: MetricType, text: str, *labels: str, unit: str = "", buckets: tuple[float, ...] = ()
) -> Metric:
    metric = Metric(name, kind, text, labels, unit, buckets)
    _TABLE.append(metric)
    return metric


_COUNTER, _GAUGE, _HISTOGRAM = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM

# 0.001 × 2ⁿ for n = 0..14, and the steps of the programming latency: both as kube-proxy has them.
SYNC_BUCKETS = tuple(0.001 * 2**n for n in range(15))
PROGRAMMING_BUCKETS = (
    0.25,
    0.5,
    *(float(n) for n in range(1, 60)),
    *(float(n) for n in range(60, 120, 5)),
    *(float(n) for n in range(120, 301, 30)),
)

# --- kube-proxy's ---

SYNC_DURATION = _row(
    "kubeproxy_sync_proxy_rules_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] SyncProxyRules latency in seconds; one sync of hansa serves both families",
    "ip_family",
    unit="seconds",
    buckets=SYNC_BUCKETS,
)
FULL_SYNC_DURATION = _row(
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] SyncProxyRules latency in seconds for syncs of all rules",
    "ip_family",
    unit="seconds",
    buckets=SYNC_BUCKETS,
)
PARTIAL_SYNC_DURATION = _row(
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] SyncProxyRules latency in seconds for syncs of what has changed, audits of the host included",
    "ip_family",
    unit="seconds",
    buckets=SYNC_BUCKETS,
)
LAST_SYNC = _row(
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    _GAUGE,
    "[ALPHA] When the last sync ended after which nothing of the family was missing on the host",
    "ip_family",
    unit="seconds",
)
LAST_QUEUED = _row(
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    _GAUGE,
    "[ALPHA] When a sync was last asked for",
    "ip_family",
    unit="seconds",
)
NETWORK_PROGRAMMING = _row(
    "kubeproxy_network_programming_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] From the change of a pod or Service in the cluster to the end of the sync that brought it to this host",
    "ip_family",
    unit="seconds",
    buckets=PROGRAMMING_BUCKETS,
)
ENDPOINT_CHANGES_PENDING = _row(
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending", _GAUGE, "[ALPHA] EndpointSlice changes not in a sync yet"
)
ENDPOINT_CHANGES = _row("kubeproxy_sync_proxy_rules_endpoint_changes_total", _COUNTER, "[ALPHA] EndpointSlice changes")
SERVICE_CHANGES_PENDING = _row(
    "kubeproxy_sync_proxy_rules_service_changes_pending", _GAUGE, "[ALPHA] Service changes not in a sync yet"
)
SERVICE_CHANGES = _row(
    "kubeproxy_sync_proxy_rules_service_changes_total",
    _COUNTER,
    "[ALPHA] Service changes, each counted once for every family of the node, as kube-proxy does",
)
NO_LOCAL_ENDPOINTS = _row(
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    _GAUGE,
    "[ALPHA] Service ports that traffic policy Local leaves without endpoints on this node while others have some",
    "traffic_policy",
    "ip_family",
)
HEALTHZ = _row("kubeproxy_proxy_healthz_total", _COUNTER, "[ALPHA] Answers of /healthz by HTTP status code", "code")
LIVEZ = _row("kubeproxy_proxy_livez_total", _COUNTER, "[ALPHA] Answers of /livez by HTTP status code", "code")
NFTABLES_FAILURES = _row(
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
    _COUNTER,
    "[ALPHA] Syncs of the nftables dataplane after which the family was not as desired",
    "ip_family",
)

CONNTRACK_DURATION = _row(
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] Looks for stale UDP flows, each with cutting what was found; they come only when a flow could be stale",
    "ip_family",
    unit="seconds",
    buckets=SYNC_BUCKETS,
)
CONNTRACK_DELETED = _row(
    "kubeproxy_conntrack_reconciler_deleted_entries_total",
    _COUNTER,
    "[ALPHA] Connection-tracking entries deleted because they were stale",
    "ip_family",
)

# --- of every Kubernetes component ---

REST_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
REST_BYTES = (64.0, 256.0, 512.0, 1024.0, *(4.0**n for n in range(6, 13)))

REST_REQUESTS = _row(
    "rest_client_requests_total",
    _COUNTER,
    "[ALPHA] Requests to the API server by HTTP status, watches included; `<error>` = there was no answer",
    "code",
    "method",
    "host",
)
REST_DURATION = _row(
    "rest_client_request_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] Time until a request that is no watch was answered in full",
    "verb",
    "host",
    unit="seconds",
    buckets=REST_SECONDS,
)
REST_LIMITER = _row(
    "rest_client_rate_limiter_duration_seconds",
    _HISTOGRAM,
    "[ALPHA] Time that requests waited for their turn under the client's own limit; nothing without such a limit",
    "verb",
    "host",
    unit="seconds",
    buckets=REST_SECONDS,
)
REST_REQUEST_SIZE = _row(
    "rest_client_request_size_bytes",
    _HISTOGRAM,
    "[ALPHA] Size of what requests carry",
    "verb",
    "host",
    unit="bytes",
    buckets=REST_BYTES,
)
REST_RESPONSE_SIZE = _row(
    "rest_client_response_size_bytes",
    _HISTOGRAM,
    "[ALPHA] Size of answers that are no watch, unpacked",
    "verb",
    "host",
    unit="bytes",
    buckets=REST_BYTES,
)
REST_RETRIES = _row(
    "rest_client_request_retries_total",
    _COUNTER,
    "[ALPHA] Requests made again after an answer that failed, by that answer's code",
    "code",
    "verb",
    "host",
)
KUBERNETES_BUILD_INFO = _row(
    "kubernetes_build_info",
    _GAUGE,
    "[BETA] Always 1; the Kubernetes release whose kube-proxy this stands in for; `go_version` tells the Python",
    "major",
    "minor",
    "git_version",
    "git_commit",
    "git_tree_state",
    "build_date",
    "go_version",
    "compiler",
    "platform",
)
FEATURE_ENABLED = _row(
    "kubernetes_feature_enabled",
    _GAUGE,
    "[BETA] 1 for a feature gate that is on, 0 for one that is off",
    "name",
    "stage",
)
REGISTERED_METRICS = _row(
    "registered_metrics_total",
    _COUNTER,
    "[BETA] Metrics that this table has, by stability",
    "stability_level",
    "deprecated_version",
)
DISABLED_METRICS = _row("disabled_metrics_total", _COUNTER, "[BETA] Metrics switched off; there is no such switch here")
HIDDEN_METRICS = _row(
    "hidden_metrics_total", _COUNTER, "[BETA] Metrics hidden because they are deprecated; none is here"
)

# --- hansa's own ---

BUILD_INFO = _row("hansa_build_info", _GAUGE, "Always 1; what runs here", "version", "python", "dataplane")
SYNCS = _row("hansa_syncs_total", _COUNTER, "Syncs by kind (partial, audit, full) and result", "kind", "result")
PHASE_DURATION = _row(
    "hansa_sync_phase_duration_seconds",
    _HISTOGRAM,
    "The parts of a sync: build (views and rules of what was touched) and host (compare and write)",
    "phase",
    unit="seconds",
    buckets=SYNC_BUCKETS,
)
SYNC_RUNNING = _row(
    "hansa_sync_running_seconds", _GAUGE, "Age of the sync under way, 0 if there is none", unit="seconds"
)
HOST_STATE = _row("hansa_host_state", _GAUGE, "1 for the state in which the last sync found the host", "state")
START_STEPS = _row(
    "hansa_start_steps",
    _GAUGE,
    "Steps done until the first sync was complete; all 0 after a restart: everything was adopted as it was",
    "verb",
)
STEPS = _row("hansa_steps_total", _COUNTER, "Steps on the host's objects", "verb", "object", "outcome")
DISRUPTIVE_STEPS = _row(
    "hansa_disruptive_steps_total", _COUNTER, "Steps done that leave a gap in traffic, which this host forced", "object"
)
STEP_FAILURES = _row(
    "hansa_step_failures_total", _COUNTER, "Steps that the host refused, by hansa's class of the error", "class"
)
DRIFT = _row(
    "hansa_drift_total",
    _COUNTER,
    "Objects of ours found deleted or changed by others, by the step needed",
    "verb",
    "object",
)
DRIFT_HEALED = _row("hansa_drift_healed_total", _COUNTER, "Of these, put right in the same sync", "verb", "object")
PENDING = _row(
    "hansa_pending_objects", _GAUGE, "Objects that the host should hold and does not, or not so", "ip_family"
)
WAITING = _row(
    "hansa_waiting_seconds",
    _GAUGE,
    "Age of the oldest request that the host does not satisfy yet, 0 if there is none; too old is unhealthy",
    "ip_family",
    unit="seconds",
)
NEXT_RETRY = _row(
    "hansa_next_retry_seconds", _GAUGE, "Time until what failed is tried again, 0 if nothing waits", unit="seconds"
)
SHORTFALLS = _row("hansa_shortfalls", _GAUGE, "Rules that this host cannot do in full, by feature", "feature")
CONDITIONS = _row("hansa_conditions", _GAUGE, "Sentences for the operator that are true now; the log has them")
CONFLICTS = _row("hansa_conflicts", _GAUGE, "Claims of service ports to a frontend that an older one has")
HOST_CALLS = _row(
    "hansa_host_calls_total",
    _COUNTER,
    "Calls to the host, by its own verbs, `call` where these are not told, and by result (ok, error)",
    "verb",
    "result",
)
HOST_CALL_ERRORS = _row(
    "hansa_host_call_errors_total",
    _COUNTER,
    "Calls that the host refused, by verb and code: HRESULTs such as 0x803b0013, or EBUSY and its like on Linux",
    "verb",
    "code",
)
HOST_CALL_DURATION = _row(
    "hansa_host_call_duration_seconds",
    _HISTOGRAM,
    "Time of single calls to the host, where the dataplane takes it",
    "verb",
    unit="seconds",
    buckets=SYNC_BUCKETS,
)
HOST_OBJECTS = _row(
    "hansa_host_objects",
    _GAUGE,
    "Objects by kind as of the last comparison with the host: desired, observed (ours on the host), foreign (others')",
    "object",
    "state",
)
ADOPTED = _row(
    "hansa_adopted_objects",
    _GAUGE,
    "Objects of ours that were there at the start and served as they were; Windows",
    "object",
)
BACKING_OFF = _row(
    "hansa_backoff_objects",
    _GAUGE,
    "Objects that wait because the host refused them, by hansa's class of the error; Windows",
    "class",
)
FRONTENDS = _row("hansa_frontends", _GAUGE, "Frontends that have a rule")
OBJECTS = _row("hansa_objects", _GAUGE, "API objects known", "kind")
MALFORMED = _row(
    "hansa_malformed_objects", _GAUGE, "API objects whose newest form cannot be used; the last good one is", "kind"
)
CHANGES = _row("hansa_changes_total", _COUNTER, "Changes of API objects taken in", "kind")
SERVICE_FAILURES = _row(
    "hansa_service_failures_total", _COUNTER, "Times that a Service kept its old rules because of a bug in hansa"
)
SOURCES_TROUBLED = _row("hansa_sources_troubled", _GAUGE, "Sources of objects that cannot be read in full now")
SOURCE_FAILURES = _row("hansa_source_failures_total", _COUNTER, "Times that a source ended by a bug and was restarted")
EVENTS = _row(
    "hansa_events_total",
    _COUNTER,
    "Kubernetes Events by reason and what became of them: sent, limited, refused (no permission), failed, dropped",
    "reason",
    "outcome",
)
LOG_SUPPRESSED = _row(
    "hansa_log_suppressed_total",
    _COUNTER,
    "Log lines left out because the same was said of the same object just before",
)
HEALTH_CHECK_PORTS = _row(
    "hansa_health_check_ports", _GAUGE, "healthCheckNodePorts by whether they listen or cannot", "state"
)

# --- of every process ---

PROCESS_CPU = _row("process_cpu_seconds_total", _COUNTER, "Processor time, user and system", unit="seconds")
PROCESS_RESIDENT = _row("process_resident_memory_bytes", _GAUGE, "Resident memory", unit="bytes")
PROCESS_VIRTUAL = _row("process_virtual_memory_bytes", _GAUGE, "Virtual memory", unit="bytes")
PROCESS_OPEN_FDS = _row("process_open_fds", _GAUGE, "Open file descriptors; handles on Windows")
PROCESS_MAX_FDS = _row("process_max_fds", _GAUGE, "Most file descriptors that may be open; not on Windows")
PROCESS_START = _row("process_start_time_seconds", _GAUGE, "When the process started", unit="seconds")

METRICS: tuple[Metric, ...] = tuple(_TABLE)

# --- /metrics/slis: apart from the others, as kube-proxy has them ---

HEALTHCHECK = Metric(
    "kubernetes_healthcheck",
    MetricType.GAUGE,
    "[STABLE] Result of a health check when it was last asked for: 1 = healthy",
    ("name", "type"),
)
HEALTHCHECKS = Metric(
    "kubernetes_healthchecks_total",
    MetricType.COUNTER,
    "[STABLE] Health checks asked for, by result",
    ("name", "type", "status"),
)
SLI_METRICS: tuple[Metric, ...] = (HEALTHCHECK, HEALTHCHECKS, PROCESS_START)

# kube-proxy's metrics that would be numbers without a thing behind them, and why.
NOT_SERVED: Mapping[str, str] = {
    "kubeproxy_sync_proxy_rules_iptables_*": "there are no iptables rules; `hansa_steps_total` counts what is written",
    "kubeproxy_iptables_*": "there are no iptables rules whose packets could be counted",
    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total": "nothing is removed later than in the sync itself",
    "rest_client_exec_plugin_*, rest_client_transport_*": "parts of the Go client that hansa does not have",
    "workqueue_*, informer_*, go_*, apiserver_*": "parts of Go programs that hansa does not have",
}

_Kind = TypeVar("_Kind", Counter, Gauge, Histogram)
_Instrument = Counter | Gauge | Histogram


class Metrics:
    """The values of all metrics of one table. Labels are given in the table's order. Used by one thread."""

    def __init__(self, table: tuple[Metric, ...] = METRICS) -> None:
        registry = CollectorRegistry(auto_describe=False)
        self._table = table
        self._instruments: dict[Metric, _Instrument] = {metric: _instrument(metric, registry) for metric in table}
        self._unset = {metric for metric in table if metric.type is MetricType.GAUGE}
        self._totals: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Count upwards."""
        self._series(metric, labels, Counter).inc(amount)

    def raise_to(self, metric: Metric, total: float, *labels: str) -> None:
        """Let a counter show a total that is counted elsewhere; a smaller one than before changes nothing."""
        before = self._totals.get((metric, labels), 0.0)
        self._series(metric, labels, Counter).inc(max(0.0, total - before))
        self._totals[metric, labels] = max(total, before)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        self._series(metric, labels, Gauge).set(value)
        self._unset.discard(metric)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        self._series(metric, labels, Histogram).observe(value)

    def set_all(self, metric: Metric, values: Mapping[tuple[str, ...], float]) -> None:
        """Let a labelled gauge have these series and no others."""
        self._instruments[metric].clear()
        for labels, value in values.items():
            self.set(metric, value, *labels)

    def text(self) -> str:
        """Everything in Prometheus's text format. A gauge appears once it is set, a labelled metric with a series."""
        shown = (metric for metric in self._table if metric not in self._unset)
        return "".join(f"{line}\n" for metric in shown for line in self._lines(metric))

    def _series(self, metric: Metric, labels: tuple[str, ...], kind: type[_Kind]) -> _Kind:
        instrument = self._instruments[metric]
        assert isinstance(instrument, kind), f"{metric.name} is a {metric.type.value}"
        return instrument.labels(*labels) if metric.labels else instrument

    def _lines(self, metric: Metric) -> Iterator[str]:
        (family,) = self._instruments[metric].collect()
        # The library adds a series with the time of each one's birth, which kube-proxy does not have.
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if not samples:
            return
        yield f"# HELP {metric.name} {_escaped(metric.help)}"
        yield f"# TYPE {metric.name} {metric.type.value}"
        for sample in samples:
            labels = {name: go_number(float(value)) if name == "le" else value for name, value in sample.labels.items()}
            yield f"{sample.name}{_braced(labels.items())} {go_number(sample.value)}"


def _instrument(metric: Metric, registry: CollectorRegistry) -> _Instrument:
    match metric.type:
        case MetricType.COUNTER:
            # The library wants the name without `_total` and gives it back with it.
            return Counter(metric.name.removesuffix("_total"), metric.help, metric.labels, registry=registry)
        case MetricType.GAUGE:
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)
        case MetricType.HISTOGRAM:
            return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
        case _:
            assert_never(metric.type)


def go_number(value: float) -> str:
    """A number as Go's shortest form has it: `1`, `0.25`, `1e+06`, `1.7640001e+09`, `+Inf`."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = len(digits) - 1 + exponent
    text = "".join(map(str, digits))
    minus = "-" if sign else ""
    if -4 <= power < 6:  # where Go changes to the form with an exponent
        return f"{minus}{Decimal((0, digits, exponent)):f}"
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{minus}{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _braced(labels: Iterable[tuple[str, str]]) -> str:
    shown = ",".join(f'{name}="{_escaped(value).replace(chr(34), chr(92) + chr(34))}"' for name, value in labels)
    return f"{{{shown}}}" if shown else ""

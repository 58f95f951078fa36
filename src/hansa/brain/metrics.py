"""The brain's metrics: KPNG's two counters under their names, and hansa's own."""

from __future__ import annotations

from hansa.metrics import Metric, MetricType

EVENTS = Metric(
    "kpng_k8s_api_events_total", MetricType.COUNTER, "Changes that came from the source, whatever came of them"
)
SENT = Metric(
    "kpng_node_local_events_total",
    MetricType.COUNTER,
    "Operations sent to clients, Reset and Sync included; a message of the node API counts as one",
)
REVISION = Metric("hansa_brain_revision", MetricType.GAUGE, "Grows with every batch of changes that makes a difference")
READY = Metric("hansa_brain_ready", MetricType.GAUGE, "1 once Services, EndpointSlices and Nodes are complete")
CLIENTS = Metric("hansa_brain_clients", MetricType.GAUGE, "Streams that are open, by API", ("api",))
NODES = Metric(
    "hansa_brain_nodes",
    MetricType.GAUGE,
    "Nodes by state: applied, behind, failing, sent (it does not report), waiting, absent",
    ("state",),
)
BATCHES = Metric("hansa_brain_batches_total", MetricType.COUNTER, "Batches that ended with a Sync, by API", ("api",))
BYTES = Metric(
    "hansa_brain_sent_bytes_total", MetricType.COUNTER, "Bytes of messages sent, by API", ("api",), unit="bytes"
)
SLOWEST = Metric(
    "hansa_brain_waiting_services",
    MetricType.GAUGE,
    "How many changed Services the client that lags most has not been told of",
)
TABLE = (EVENTS, SENT, REVISION, READY, CLIENTS, NODES, BATCHES, BYTES, SLOWEST)

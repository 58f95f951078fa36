"""For tests of hansa and of outside dataplanes: builders, the standing example, and `check_dataplane`.

What comes in: as much of an object as a test cares about; a dataplane. What goes out: whole objects; the checks that a
dataplane passes. Who calls it: tests, the docs, whoever writes a dataplane (docs/howto/write-a-dataplane.md).
What it must never do: know a dataplane of hansa's, or need a host.
Evidence: service-semantics section 0 for the standing example; the promises in `hansa.dataplanes.base`.

>>> web = service("web", node_port=30080)
>>> str(web.cluster_ips[0]), web.ports[0].node_port
('10.96.0.10', 30080)
"""

from __future__ import annotations

from hansa.api.objects import SliceEndpoint as SliceEndpoint
from hansa.testing.builders import (
    CLUSTER_IP,
    CLUSTER_POD_RANGE,
    EXTERNAL_IP,
    L1,
    L2,
    NODE,
    NODE_ADDRESSES,
    NODE_FACTS,
    NODE_IP,
    NODE_IP_V6,
    NODE_NAME,
    NODE_PORT,
    NODE_SECONDARY_IP,
    POD_RANGE,
    R1,
    R2,
    SERVICE_RANGE,
    VIP,
    WEB,
    WEB_KEY,
    ZONE,
    Client,
    config,
    endpoint,
    endpoint_slice,
    manifest,
    manifest_endpoint_slice,
    manifest_json,
    manifest_node,
    manifest_service,
    manifest_service_cidr,
    node,
    port,
    service,
    service_cidr,
    slice_port,
)
from hansa.testing.builders import EndpointFields as EndpointFields
from hansa.testing.builders import ServiceFields as ServiceFields
from hansa.testing.dataplanes import DataplaneCheckFailed, check_dataplane

__all__ = [
    "CLUSTER_IP",
    "CLUSTER_POD_RANGE",
    "EXTERNAL_IP",
    "L1",
    "L2",
    "NODE",
    "NODE_ADDRESSES",
    "NODE_FACTS",
    "NODE_IP",
    "NODE_IP_V6",
    "NODE_NAME",
    "NODE_PORT",
    "NODE_SECONDARY_IP",
    "POD_RANGE",
    "R1",
    "R2",
    "SERVICE_RANGE",
    "VIP",
    "WEB",
    "WEB_KEY",
    "ZONE",
    "Client",
    "DataplaneCheckFailed",
    "check_dataplane",
    "config",
    "endpoint",
    "endpoint_slice",
    "manifest",
    "manifest_endpoint_slice",
    "manifest_json",
    "manifest_node",
    "manifest_service",
    "manifest_service_cidr",
    "node",
    "port",
    "service",
    "service_cidr",
    "slice_port",
]

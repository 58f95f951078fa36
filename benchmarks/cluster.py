"""Clusters for benchmarks: Kubernetes lists as JSON bytes, as an API server sends them, managedFields included."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

NODES = 200
FIRST_CLUSTER_IP = int(IPv4Address("10.96.0.10"))
FIRST_POD_IP = int(IPv4Address("10.128.0.1"))

# What real objects carry and a proxy must skip quickly.
MANAGED_FIELDS = [
    {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-01-02T03:04:05Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:ports": {".": {}, "k:{}": {}}}},
    }
]


def service(index: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": f"svc-{index}",
            "namespace": f"team-{index % 50}",
            "uid": f"00000000-0000-4000-8000-{index:012d}",
            "resourceVersion": str(1000 + index),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": f"svc-{index}"},
            "managedFields": MANAGED_FIELDS,
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": str(IPv4Address(FIRST_CLUSTER_IP + index)),
            "clusterIPs": [str(IPv4Address(FIRST_CLUSTER_IP + index))],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": f"svc-{index}"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(index: int, endpoints: int, shift: int = 0) -> dict[str, Any]:
    """The slice of service `index`; `shift` moves its endpoints to other addresses, for changes."""
    first = FIRST_POD_IP + index * endpoints
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": f"svc-{index}-abcde",
            "namespace": f"team-{index % 50}",
            "uid": f"00000000-0000-4000-9000-{index:012d}",
            "resourceVersion": str(1000 + index + shift),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"kubernetes.io/service-name": f"svc-{index}", "app": f"svc-{index}"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"},
            "managedFields": MANAGED_FIELDS,
        },
        "endpoints": [
            {
                "addresses": [str(IPv4Address(first + number if number or not shift else first + (1 << 22) + shift))],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{(index + number) % NODES}",
                "zone": f"zone-{(index + number) % 3}",
                "targetRef": {"kind": "Pod", "namespace": f"team-{index % 50}", "name": f"svc-{index}-{number}"},
            }
            for number in range(endpoints)
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def node(index: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{index}", "labels": {"topology.kubernetes.io/zone": f"zone-{index % 3}"}},
        "spec": {"podCIDRs": [f"10.{128 + index // 256}.{index % 256}.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{1 + index % 250}"}]},
    }


def as_bytes(objects: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(item, separators=(",", ":")).encode() for item in objects]


def as_list(objects: list[dict[str, Any]]) -> bytes:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, separators=(",", ":")).encode()

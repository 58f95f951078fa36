from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    FORWARD: _ClassVar[Verdict]
    DROP: _ClassVar[Verdict]
    REJECT: _ClassVar[Verdict]

class Protocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROTOCOL_UNSPECIFIED: _ClassVar[Protocol]
    TCP: _ClassVar[Protocol]
    UDP: _ClassVar[Protocol]
    SCTP: _ClassVar[Protocol]

class Family(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAMILY_UNSPECIFIED: _ClassVar[Family]
    IPV4: _ClassVar[Family]
    IPV6: _ClassVar[Family]

class Policy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLUSTER: _ClassVar[Policy]
    LOCAL: _ClassVar[Policy]

class Topology(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALL: _ClassVar[Topology]
    SAME_ZONE: _ClassVar[Topology]
    SAME_NODE: _ClassVar[Topology]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHOSEN: _ClassVar[Reason]
    NOT_READY: _ClassVar[Reason]
    TERMINATING: _ClassVar[Reason]
    NOT_SERVING: _ClassVar[Reason]
    OTHER_ZONE: _ClassVar[Reason]
    OTHER_NODE: _ClassVar[Reason]
    NOT_LOCAL: _ClassVar[Reason]
VERDICT_UNSPECIFIED: Verdict
FORWARD: Verdict
DROP: Verdict
REJECT: Verdict
PROTOCOL_UNSPECIFIED: Protocol
TCP: Protocol
UDP: Protocol
SCTP: Protocol
FAMILY_UNSPECIFIED: Family
IPV4: Family
IPV6: Family
CLUSTER: Policy
LOCAL: Policy
ALL: Topology
SAME_ZONE: Topology
SAME_NODE: Topology
CHOSEN: Reason
NOT_READY: Reason
TERMINATING: Reason
NOT_SERVING: Reason
OTHER_ZONE: Reason
OTHER_NODE: Reason
NOT_LOCAL: Reason

class WatchRequest(_message.Message):
    __slots__ = ("node_name", "report_only", "report", "observer")
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    REPORT_ONLY_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    OBSERVER_FIELD_NUMBER: _ClassVar[int]
    node_name: str
    report_only: bool
    report: Report
    observer: bool
    def __init__(self, node_name: _Optional[str] = ..., report_only: _Optional[bool] = ..., report: _Optional[_Union[Report, _Mapping[str, _Any]]] = ..., observer: _Optional[bool] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("applied_revision", "received_revision", "failures", "shortfalls", "dataplane", "version", "pending_count", "host_state")
    APPLIED_REVISION_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_REVISION_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    SHORTFALLS_FIELD_NUMBER: _ClassVar[int]
    DATAPLANE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PENDING_COUNT_FIELD_NUMBER: _ClassVar[int]
    HOST_STATE_FIELD_NUMBER: _ClassVar[int]
    applied_revision: int
    received_revision: int
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    shortfalls: _containers.RepeatedScalarFieldContainer[str]
    dataplane: str
    version: str
    pending_count: int
    host_state: str
    def __init__(self, applied_revision: _Optional[int] = ..., received_revision: _Optional[int] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping[str, _Any]]]] = ..., shortfalls: _Optional[_Iterable[str]] = ..., dataplane: _Optional[str] = ..., version: _Optional[str] = ..., pending_count: _Optional[int] = ..., host_state: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("key", "error")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    key: str
    error: str
    def __init__(self, key: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("reset", "revision", "set", "delete", "node", "service_ranges", "sync")
    RESET_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_RANGES_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    reset: bool
    revision: int
    set: _containers.RepeatedCompositeFieldContainer[Service]
    delete: _containers.RepeatedScalarFieldContainer[str]
    node: NodeObject
    service_ranges: ServiceRanges
    sync: bool
    def __init__(self, reset: _Optional[bool] = ..., revision: _Optional[int] = ..., set: _Optional[_Iterable[_Union[Service, _Mapping[str, _Any]]]] = ..., delete: _Optional[_Iterable[str]] = ..., node: _Optional[_Union[NodeObject, _Mapping[str, _Any]]] = ..., service_ranges: _Optional[_Union[ServiceRanges, _Mapping[str, _Any]]] = ..., sync: _Optional[bool] = ...) -> None: ...

class NodeObject(_message.Message):
    __slots__ = ("name", "addresses", "zone", "pod_cidrs", "taint_keys", "deleting")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    POD_CIDRS_FIELD_NUMBER: _ClassVar[int]
    TAINT_KEYS_FIELD_NUMBER: _ClassVar[int]
    DELETING_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    zone: str
    pod_cidrs: _containers.RepeatedScalarFieldContainer[str]
    taint_keys: _containers.RepeatedScalarFieldContainer[str]
    deleting: bool
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., zone: _Optional[str] = ..., pod_cidrs: _Optional[_Iterable[str]] = ..., taint_keys: _Optional[_Iterable[str]] = ..., deleting: _Optional[bool] = ...) -> None: ...

class ServiceRanges(_message.Message):
    __slots__ = ("prefixes",)
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prefixes: _Optional[_Iterable[str]] = ...) -> None: ...

class Service(_message.Message):
    __slots__ = ("namespace", "name", "ports")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    ports: _containers.RepeatedCompositeFieldContainer[Port]
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., ports: _Optional[_Iterable[_Union[Port, _Mapping[str, _Any]]]] = ...) -> None: ...

class Port(_message.Message):
    __slots__ = ("name", "protocol", "family", "port", "cluster_ip", "node_port", "external_ips", "load_balancer_ips", "source_ranges", "internal_policy", "external_policy", "affinity_timeout_s", "health_check_node_port", "service_type", "preserve_destination", "created", "endpoints", "internal", "external", "short_circuit", "topology")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_IP_FIELD_NUMBER: _ClassVar[int]
    NODE_PORT_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_IPS_FIELD_NUMBER: _ClassVar[int]
    LOAD_BALANCER_IPS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RANGES_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_POLICY_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_POLICY_FIELD_NUMBER: _ClassVar[int]
    AFFINITY_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    HEALTH_CHECK_NODE_PORT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    PRESERVE_DESTINATION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_FIELD_NUMBER: _ClassVar[int]
    SHORT_CIRCUIT_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    name: str
    protocol: Protocol
    family: Family
    port: int
    cluster_ip: str
    node_port: int
    external_ips: _containers.RepeatedScalarFieldContainer[str]
    load_balancer_ips: _containers.RepeatedScalarFieldContainer[str]
    source_ranges: SourceRanges
    internal_policy: Policy
    external_policy: Policy
    affinity_timeout_s: int
    health_check_node_port: int
    service_type: str
    preserve_destination: bool
    created: float
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    internal: Decision
    external: Decision
    short_circuit: Decision
    topology: Topology
    def __init__(self, name: _Optional[str] = ..., protocol: _Optional[_Union[Protocol, str]] = ..., family: _Optional[_Union[Family, str]] = ..., port: _Optional[int] = ..., cluster_ip: _Optional[str] = ..., node_port: _Optional[int] = ..., external_ips: _Optional[_Iterable[str]] = ..., load_balancer_ips: _Optional[_Iterable[str]] = ..., source_ranges: _Optional[_Union[SourceRanges, _Mapping[str, _Any]]] = ..., internal_policy: _Optional[_Union[Policy, str]] = ..., external_policy: _Optional[_Union[Policy, str]] = ..., affinity_timeout_s: _Optional[int] = ..., health_check_node_port: _Optional[int] = ..., service_type: _Optional[str] = ..., preserve_destination: _Optional[bool] = ..., created: _Optional[float] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping[str, _Any]]]] = ..., internal: _Optional[_Union[Decision, _Mapping[str, _Any]]] = ..., external: _Optional[_Union[Decision, _Mapping[str, _Any]]] = ..., short_circuit: _Optional[_Union[Decision, _Mapping[str, _Any]]] = ..., topology: _Optional[_Union[Topology, str]] = ...) -> None: ...

class SourceRanges(_message.Message):
    __slots__ = ("prefixes",)
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prefixes: _Optional[_Iterable[str]] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("address", "port", "node", "ready", "serving", "terminating", "reason")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    TERMINATING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    node: str
    ready: bool
    serving: bool
    terminating: bool
    reason: Reason
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ..., node: _Optional[str] = ..., ready: _Optional[bool] = ..., serving: _Optional[bool] = ..., terminating: _Optional[bool] = ..., reason: _Optional[_Union[Reason, str]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("verdict", "endpoints", "fallback")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    endpoints: _containers.RepeatedScalarFieldContainer[int]
    fallback: bool
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., endpoints: _Optional[_Iterable[int]] = ..., fallback: _Optional[bool] = ...) -> None: ...

class NodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodesResponse(_message.Message):
    __slots__ = ("revision", "nodes")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeState]
    def __init__(self, revision: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeState, _Mapping[str, _Any]]]] = ...) -> None: ...

class NodeState(_message.Message):
    __slots__ = ("name", "api", "connected", "peer", "sent_revision", "report", "last_seen_s", "complete_revision", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SENT_REVISION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    api: str
    connected: bool
    peer: str
    sent_revision: int
    report: Report
    last_seen_s: float
    complete_revision: int
    state: str
    def __init__(self, name: _Optional[str] = ..., api: _Optional[str] = ..., connected: _Optional[bool] = ..., peer: _Optional[str] = ..., sent_revision: _Optional[int] = ..., report: _Optional[_Union[Report, _Mapping[str, _Any]]] = ..., last_seen_s: _Optional[float] = ..., complete_revision: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

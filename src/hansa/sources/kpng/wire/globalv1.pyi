from hansa.sources.kpng.wire import localv1 as _api_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GlobalWatchReq(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServiceInfo(_message.Message):
    __slots__ = ("Hash", "Service")
    HASH_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    Hash: int
    Service: _api_pb2.Service
    def __init__(self, Hash: _Optional[int] = ..., Service: _Optional[_Union[_api_pb2.Service, _Mapping[str, _Any]]] = ...) -> None: ...

class EndpointInfo(_message.Message):
    __slots__ = ("Hash", "Namespace", "SourceName", "ServiceName", "Endpoint", "Conditions", "PodName", "Topology", "Hints", "TriggerTime")
    HASH_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SOURCENAME_FIELD_NUMBER: _ClassVar[int]
    SERVICENAME_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    PODNAME_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    TRIGGERTIME_FIELD_NUMBER: _ClassVar[int]
    Hash: int
    Namespace: str
    SourceName: str
    ServiceName: str
    Endpoint: _api_pb2.Endpoint
    Conditions: EndpointConditions
    PodName: str
    Topology: TopologyInfo
    Hints: TopologyHints
    TriggerTime: float
    def __init__(self, Hash: _Optional[int] = ..., Namespace: _Optional[str] = ..., SourceName: _Optional[str] = ..., ServiceName: _Optional[str] = ..., Endpoint: _Optional[_Union[_api_pb2.Endpoint, _Mapping[str, _Any]]] = ..., Conditions: _Optional[_Union[EndpointConditions, _Mapping[str, _Any]]] = ..., PodName: _Optional[str] = ..., Topology: _Optional[_Union[TopologyInfo, _Mapping[str, _Any]]] = ..., Hints: _Optional[_Union[TopologyHints, _Mapping[str, _Any]]] = ..., TriggerTime: _Optional[float] = ...) -> None: ...

class EndpointConditions(_message.Message):
    __slots__ = ("Ready", "Serving", "Terminating")
    READY_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    TERMINATING_FIELD_NUMBER: _ClassVar[int]
    Ready: bool
    Serving: bool
    Terminating: bool
    def __init__(self, Ready: _Optional[bool] = ..., Serving: _Optional[bool] = ..., Terminating: _Optional[bool] = ...) -> None: ...

class TopologyInfo(_message.Message):
    __slots__ = ("Node", "Zone")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    Node: str
    Zone: str
    def __init__(self, Node: _Optional[str] = ..., Zone: _Optional[str] = ...) -> None: ...

class TopologyHints(_message.Message):
    __slots__ = ("Zones", "Nodes")
    ZONES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    Zones: _containers.RepeatedScalarFieldContainer[str]
    Nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, Zones: _Optional[_Iterable[str]] = ..., Nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("Hash", "Node")
    HASH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    Hash: int
    Node: _Node
    def __init__(self, Hash: _Optional[int] = ..., Node: _Optional[_Union[_Node, _Mapping[str, _Any]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("Name", "Labels", "Annotations", "Topology", "Addresses", "PodCIDRs", "TaintKeys", "Deleting")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PODCIDRS_FIELD_NUMBER: _ClassVar[int]
    TAINTKEYS_FIELD_NUMBER: _ClassVar[int]
    DELETING_FIELD_NUMBER: _ClassVar[int]
    Name: str
    Labels: _containers.ScalarMap[str, str]
    Annotations: _containers.ScalarMap[str, str]
    Topology: TopologyInfo
    Addresses: _containers.RepeatedScalarFieldContainer[str]
    PodCIDRs: _containers.RepeatedScalarFieldContainer[str]
    TaintKeys: _containers.RepeatedScalarFieldContainer[str]
    Deleting: bool
    def __init__(self, Name: _Optional[str] = ..., Labels: _Optional[_Mapping[str, str]] = ..., Annotations: _Optional[_Mapping[str, str]] = ..., Topology: _Optional[_Union[TopologyInfo, _Mapping[str, _Any]]] = ..., Addresses: _Optional[_Iterable[str]] = ..., PodCIDRs: _Optional[_Iterable[str]] = ..., TaintKeys: _Optional[_Iterable[str]] = ..., Deleting: _Optional[bool] = ...) -> None: ...
_Node = Node

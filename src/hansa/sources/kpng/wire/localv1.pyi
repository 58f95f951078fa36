from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Set(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UnknownSet: _ClassVar[Set]
    ServicesSet: _ClassVar[Set]
    EndpointsSet: _ClassVar[Set]
    GlobalServiceInfos: _ClassVar[Set]
    GlobalEndpointInfos: _ClassVar[Set]
    GlobalNodeInfos: _ClassVar[Set]

class Protocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UnknownProtocol: _ClassVar[Protocol]
    TCP: _ClassVar[Protocol]
    UDP: _ClassVar[Protocol]
    SCTP: _ClassVar[Protocol]
UnknownSet: Set
ServicesSet: Set
EndpointsSet: Set
GlobalServiceInfos: Set
GlobalEndpointInfos: Set
GlobalNodeInfos: Set
UnknownProtocol: Protocol
TCP: Protocol
UDP: Protocol
SCTP: Protocol

class WatchReq(_message.Message):
    __slots__ = ("NodeName",)
    NODENAME_FIELD_NUMBER: _ClassVar[int]
    NodeName: str
    def __init__(self, NodeName: _Optional[str] = ...) -> None: ...

class OpItem(_message.Message):
    __slots__ = ("Sync", "Set", "Delete", "Reset")
    SYNC_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    Sync: EmptyOp
    Set: Value
    Delete: Ref
    Reset: EmptyOp
    def __init__(self, Sync: _Optional[_Union[EmptyOp, _Mapping[str, _Any]]] = ..., Set: _Optional[_Union[Value, _Mapping[str, _Any]]] = ..., Delete: _Optional[_Union[Ref, _Mapping[str, _Any]]] = ..., Reset: _Optional[_Union[EmptyOp, _Mapping[str, _Any]]] = ...) -> None: ...

class EmptyOp(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ref(_message.Message):
    __slots__ = ("Set", "Path")
    SET_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    Set: _Set
    Path: str
    def __init__(self, Set: _Optional[_Union[_Set, str]] = ..., Path: _Optional[str] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("Ref", "Bytes")
    REF_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    Ref: _Ref
    Bytes: bytes
    def __init__(self, Ref: _Optional[_Union[_Ref, _Mapping[str, _Any]]] = ..., Bytes: _Optional[bytes] = ...) -> None: ...

class Service(_message.Message):
    __slots__ = ("Namespace", "Name", "Type", "IPs", "MapIP", "Ports", "ExternalTrafficToLocal", "Labels", "Annotations", "IPFilters", "ClientIP", "InternalTrafficToLocal", "HealthCheckNodePort", "Created", "PreserveDestination")
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
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    IPS_FIELD_NUMBER: _ClassVar[int]
    MAPIP_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    EXTERNALTRAFFICTOLOCAL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    IPFILTERS_FIELD_NUMBER: _ClassVar[int]
    CLIENTIP_FIELD_NUMBER: _ClassVar[int]
    INTERNALTRAFFICTOLOCAL_FIELD_NUMBER: _ClassVar[int]
    HEALTHCHECKNODEPORT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    PRESERVEDESTINATION_FIELD_NUMBER: _ClassVar[int]
    Namespace: str
    Name: str
    Type: str
    IPs: ServiceIPs
    MapIP: bool
    Ports: _containers.RepeatedCompositeFieldContainer[PortMapping]
    ExternalTrafficToLocal: bool
    Labels: _containers.ScalarMap[str, str]
    Annotations: _containers.ScalarMap[str, str]
    IPFilters: _containers.RepeatedCompositeFieldContainer[IPFilter]
    ClientIP: ClientIPAffinity
    InternalTrafficToLocal: bool
    HealthCheckNodePort: int
    Created: float
    PreserveDestination: bool
    def __init__(self, Namespace: _Optional[str] = ..., Name: _Optional[str] = ..., Type: _Optional[str] = ..., IPs: _Optional[_Union[ServiceIPs, _Mapping[str, _Any]]] = ..., MapIP: _Optional[bool] = ..., Ports: _Optional[_Iterable[_Union[PortMapping, _Mapping[str, _Any]]]] = ..., ExternalTrafficToLocal: _Optional[bool] = ..., Labels: _Optional[_Mapping[str, str]] = ..., Annotations: _Optional[_Mapping[str, str]] = ..., IPFilters: _Optional[_Iterable[_Union[IPFilter, _Mapping[str, _Any]]]] = ..., ClientIP: _Optional[_Union[ClientIPAffinity, _Mapping[str, _Any]]] = ..., InternalTrafficToLocal: _Optional[bool] = ..., HealthCheckNodePort: _Optional[int] = ..., Created: _Optional[float] = ..., PreserveDestination: _Optional[bool] = ...) -> None: ...

class ServiceIPs(_message.Message):
    __slots__ = ("ClusterIPs", "ExternalIPs", "Headless", "LoadBalancerIPs")
    CLUSTERIPS_FIELD_NUMBER: _ClassVar[int]
    EXTERNALIPS_FIELD_NUMBER: _ClassVar[int]
    HEADLESS_FIELD_NUMBER: _ClassVar[int]
    LOADBALANCERIPS_FIELD_NUMBER: _ClassVar[int]
    ClusterIPs: IPSet
    ExternalIPs: IPSet
    Headless: bool
    LoadBalancerIPs: IPSet
    def __init__(self, ClusterIPs: _Optional[_Union[IPSet, _Mapping[str, _Any]]] = ..., ExternalIPs: _Optional[_Union[IPSet, _Mapping[str, _Any]]] = ..., Headless: _Optional[bool] = ..., LoadBalancerIPs: _Optional[_Union[IPSet, _Mapping[str, _Any]]] = ...) -> None: ...

class IPSet(_message.Message):
    __slots__ = ("V4", "V6")
    V4_FIELD_NUMBER: _ClassVar[int]
    V6_FIELD_NUMBER: _ClassVar[int]
    V4: _containers.RepeatedScalarFieldContainer[str]
    V6: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, V4: _Optional[_Iterable[str]] = ..., V6: _Optional[_Iterable[str]] = ...) -> None: ...

class IPFilter(_message.Message):
    __slots__ = ("TargetIPs", "SourceRanges")
    TARGETIPS_FIELD_NUMBER: _ClassVar[int]
    SOURCERANGES_FIELD_NUMBER: _ClassVar[int]
    TargetIPs: IPSet
    SourceRanges: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, TargetIPs: _Optional[_Union[IPSet, _Mapping[str, _Any]]] = ..., SourceRanges: _Optional[_Iterable[str]] = ...) -> None: ...

class PortMapping(_message.Message):
    __slots__ = ("Name", "Protocol", "Port", "NodePort", "TargetPort", "TargetPortName")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    NODEPORT_FIELD_NUMBER: _ClassVar[int]
    TARGETPORT_FIELD_NUMBER: _ClassVar[int]
    TARGETPORTNAME_FIELD_NUMBER: _ClassVar[int]
    Name: str
    Protocol: _Protocol
    Port: int
    NodePort: int
    TargetPort: int
    TargetPortName: str
    def __init__(self, Name: _Optional[str] = ..., Protocol: _Optional[_Union[_Protocol, str]] = ..., Port: _Optional[int] = ..., NodePort: _Optional[int] = ..., TargetPort: _Optional[int] = ..., TargetPortName: _Optional[str] = ...) -> None: ...

class ClientIPAffinity(_message.Message):
    __slots__ = ("TimeoutSeconds",)
    TIMEOUTSECONDS_FIELD_NUMBER: _ClassVar[int]
    TimeoutSeconds: int
    def __init__(self, TimeoutSeconds: _Optional[int] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("Hostname", "IPs", "Local", "PortOverrides", "Scopes")
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    IPS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    PORTOVERRIDES_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    Hostname: str
    IPs: IPSet
    Local: bool
    PortOverrides: _containers.RepeatedCompositeFieldContainer[PortName]
    Scopes: EndpointScopes
    def __init__(self, Hostname: _Optional[str] = ..., IPs: _Optional[_Union[IPSet, _Mapping[str, _Any]]] = ..., Local: _Optional[bool] = ..., PortOverrides: _Optional[_Iterable[_Union[PortName, _Mapping[str, _Any]]]] = ..., Scopes: _Optional[_Union[EndpointScopes, _Mapping[str, _Any]]] = ...) -> None: ...

class EndpointScopes(_message.Message):
    __slots__ = ("Internal", "External")
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_FIELD_NUMBER: _ClassVar[int]
    Internal: bool
    External: bool
    def __init__(self, Internal: _Optional[bool] = ..., External: _Optional[bool] = ...) -> None: ...

class PortName(_message.Message):
    __slots__ = ("Name", "Port", "Protocol")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    Name: str
    Port: int
    Protocol: _Protocol
    def __init__(self, Name: _Optional[str] = ..., Port: _Optional[int] = ..., Protocol: _Optional[_Union[_Protocol, str]] = ...) -> None: ...
_Protocol = Protocol
_Ref = Ref
_Set = Set

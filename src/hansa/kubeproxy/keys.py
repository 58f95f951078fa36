"""Every key of KubeProxyConfiguration v1alpha1: type, default, name in kube-proxy's messages, effect in hansa.

One table for decoding, defaults, validation, `--write-config-to` and the reference.
Evidence: operations.md section 3; the defaults are those of a file that leaves the key out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

GROUP = "kubeproxy.config.k8s.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "KubeProxyConfiguration"

# The words for bools on a command line.
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class Type(enum.Enum):
    """What may stand at a key; the value is the word for it in the reference."""

    TEXT = "text"
    BOOL = "bool"
    INTEGER = "integer"
    NUMBER = "number"
    DURATION = "duration"
    FLUSH_PERIOD = "duration, or nanoseconds"  # the one duration that may be a number
    LIST = "list of texts"
    GATES = "name: bool"
    VMODULE = "list of filePattern, verbosity"
    QUANTITY = "quantity"


# Dataplanes of hansa, as `hansa run --dataplane` calls them.
NFTABLES, WINDOWS = "nftables", "windows"
BOTH = frozenset({NFTABLES, WINDOWS})
LINUX_ONLY = frozenset({NFTABLES})
WINDOWS_ONLY = frozenset({WINDOWS})
NOWHERE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    default: in a file that leaves it out. go: its path in kube-proxy's messages, without `KubeProxyConfiguration.`.
    planes: the dataplanes on which it has an effect. why: why it has none on the others, or nowhere.
    form: what may stand there, in more words than the type has.
    """

    path: str
    type: Type
    default: object
    meaning: str
    go: str = ""
    planes: frozenset[str] = BOTH
    why: str = ""
    form: str = ""


_MARK = "the nftables dataplane marks with bit 14 (0x4000) and takes the mark off before packets leave"
_IPVS = "hansa has no ipvs mode"
_JSON = "objects are asked for as JSON, which hansa reads fastest"
_NO_PODS = "on Windows nothing is decided by whether a pod sent it"
_LINUX_KERNEL = "it sets the Linux kernel"
_HNS = "it is about the host networking service of Windows"

_T = Type
KEYS: tuple[Key, ...] = (
    Key("hostnameOverride", _T.TEXT, "", "this node's name; default: the host name, trimmed, in lower case"),
    Key(
        "bindAddress",
        _T.TEXT,
        "0.0.0.0",
        "replaces the Node's primary IP; unspecified (0.0.0.0, ::) means: do not",
        "BindAddress",
        form="address",
    ),
    Key(
        "healthzBindAddress",
        _T.TEXT,
        "",
        "where /healthz, /livez and /readyz are; [::]:10256 if bindAddress is IPv6; off: nowhere",
        "HealthzBindAddress",
        form="IP, IP:port or off",
    ),
    Key(
        "metricsBindAddress",
        _T.TEXT,
        "",
        "where /metrics and its like are; [::1]:10249 if bindAddress is IPv6; off: nowhere",
        "MetricsBindAddress",
        form="IP, IP:port or off",
    ),
    Key(
        "bindAddressHardFail",
        _T.BOOL,
        False,
        "end when one of these ports is taken, instead of trying again every 5 s",
    ),
    Key("clientConnection.kubeconfig", _T.TEXT, "", "kubeconfig file; without one, as a pod of the cluster"),
    Key("clientConnection.acceptContentTypes", _T.TEXT, "", "", planes=NOWHERE, why=_JSON),
    Key(
        "clientConnection.contentType",
        _T.TEXT,
        "application/vnd.kubernetes.protobuf",
        "",
        planes=NOWHERE,
        why=_JSON,
    ),
    Key("clientConnection.qps", _T.NUMBER, 5.0, "requests to the API server per second; below 0: no limit"),
    Key(
        "clientConnection.burst",
        _T.INTEGER,
        10,
        "how many requests may come at once above that",
        "ClientConnection.Burst",
    ),
    Key(
        "clusterCIDR",
        _T.TEXT,
        "",
        "where pods are, for detectLocalMode ClusterCIDR",
        planes=LINUX_ONLY,
        why=_NO_PODS,
        form="CIDR or IPv4,IPv6 pair",
    ),
    Key(
        "detectLocalMode",
        _T.TEXT,
        "",
        "how a pod of this node is recognised: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
        "DetectLocalMode",
        planes=LINUX_ONLY,
        why=_NO_PODS,
        form="word",
    ),
    Key(
        "detectLocal.bridgeInterface",
        _T.TEXT,
        "",
        "the bridge of pods, for BridgeInterface",
        "DetectLocalConfiguration.InterfaceName",
        planes=LINUX_ONLY,
        why=_NO_PODS,
    ),
    Key(
        "detectLocal.interfaceNamePrefix",
        _T.TEXT,
        "",
        "how interfaces of pods begin, for InterfaceNamePrefix",
        "DetectLocalConfiguration.InterfacePrefix",
        planes=LINUX_ONLY,
        why=_NO_PODS,
    ),
    Key(
        "nodePortAddresses",
        _T.LIST,
        (),
        "local addresses that serve node ports; [] = all",
        "NodePortAddresses",
        planes=LINUX_ONLY,
        why="on Windows node ports are at the node's addresses; only health checks of Services look at it",
        form="[primary], or CIDRs, or []",
    ),
    Key(
        "featureGates",
        _T.GATES,
        {},
        "AllowServiceExternalIPs=false: spec.externalIPs of Services is ignored",
        "featureGates",
    ),
    Key("mode", _T.TEXT, "", "which dataplane; see below", "Mode.ProxyMode", form="word"),
    Key("iptables.syncPeriod", _T.DURATION, "30s", "a failed sync is repeated after this time", "SyncPeriod"),
    Key("iptables.minSyncPeriod", _T.DURATION, "1s", "pause after a sync before the next", "MinSyncPeriod"),
    Key(
        "iptables.masqueradeAll",
        _T.BOOL,
        False,
        "masquerade everything sent to a ClusterIP",
        planes=LINUX_ONLY,
        why=_HNS,
    ),
    Key(
        "iptables.masqueradeBit",
        _T.INTEGER,
        14,
        "",
        "KubeProxyIPTablesConfiguration.MasqueradeBit",
        planes=NOWHERE,
        why=_MARK,
    ),
    Key(
        "iptables.localhostNodePorts",
        _T.BOOL,
        True,
        "node ports on 127.0.0.1 too; not in mode nftables",
        planes=LINUX_ONLY,
        why="Windows has no node ports on loopback",
    ),
    Key("nftables.syncPeriod", _T.DURATION, "30s", "as in iptables, in mode nftables", "SyncPeriod", planes=LINUX_ONLY),
    Key(
        "nftables.minSyncPeriod",
        _T.DURATION,
        "1s",
        "as in iptables, in mode nftables",
        "MinSyncPeriod",
        planes=LINUX_ONLY,
    ),
    Key("nftables.masqueradeAll", _T.BOOL, False, "as in iptables, in mode nftables", planes=LINUX_ONLY),
    Key(
        "nftables.masqueradeBit",
        _T.INTEGER,
        14,
        "",
        "KubeProxyNFTablesConfiguration.MasqueradeBit",
        planes=NOWHERE,
        why=_MARK,
    ),
    Key("ipvs.syncPeriod", _T.DURATION, "30s", "", "SyncPeriod", planes=NOWHERE, why=_IPVS),
    Key("ipvs.minSyncPeriod", _T.DURATION, "0s", "", "MinSyncPeriod", planes=NOWHERE, why=_IPVS),
    Key("ipvs.scheduler", _T.TEXT, "", "", planes=NOWHERE, why=_IPVS),
    Key("ipvs.excludeCIDRs", _T.LIST, (), "", "KubeProxyIPVSConfiguration.ExcludeCidrs", planes=NOWHERE, why=_IPVS),
    Key("ipvs.strictARP", _T.BOOL, False, "", planes=NOWHERE, why=_IPVS),
    Key("ipvs.tcpTimeout", _T.DURATION, "0s", "", "KubeProxyIPVSConfiguration.TCPTimeout", planes=NOWHERE, why=_IPVS),
    Key(
        "ipvs.tcpFinTimeout",
        _T.DURATION,
        "0s",
        "",
        "KubeProxyIPVSConfiguration.TCPFinTimeout",
        planes=NOWHERE,
        why=_IPVS,
    ),
    Key("ipvs.udpTimeout", _T.DURATION, "0s", "", "KubeProxyIPVSConfiguration.UDPTimeout", planes=NOWHERE, why=_IPVS),
    Key(
        "conntrack.maxPerCore",
        _T.INTEGER,
        32768,
        "entries of the connection table by processor; 0 = as it is",
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.MaxPerCore",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
        form="count",
    ),
    Key(
        "conntrack.min",
        _T.INTEGER,
        131072,
        "entries of the connection table at least, where maxPerCore is not 0",
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.Min",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
        form="count",
    ),
    Key(
        "conntrack.tcpEstablishedTimeout",
        _T.DURATION,
        "24h0m0s",
        "how long idle connections are known; 0 = as it is",
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPEstablishedTimeout",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
    ),
    Key(
        "conntrack.tcpCloseWaitTimeout",
        _T.DURATION,
        "1h0m0s",
        "the same for half closed ones; 0 = as it is",
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPCloseWaitTimeout",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
    ),
    Key(
        "conntrack.tcpBeLiberal",
        _T.BOOL,
        False,
        "TCP packets outside the window count as valid; false = as it is",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
    ),
    Key(
        "conntrack.udpTimeout",
        _T.DURATION,
        "0s",
        "how long a question without answer is known; 0 = as it is",
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPTimeout",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
    ),
    Key(
        "conntrack.udpStreamTimeout",
        _T.DURATION,
        "0s",
        "the same for UDP with answers; 0 = as it is",
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPStreamTimeout",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
    ),
    Key(
        "oomScoreAdj",
        _T.INTEGER,
        -999,
        "how late the kernel takes this process when memory is short: -1000 (never) to 1000 (first)",
        "KubeProxyLinuxConfiguration.OOMScoreAdj",
        planes=LINUX_ONLY,
        why=_LINUX_KERNEL,
    ),
    Key(
        "winkernel.networkName",
        _T.TEXT,
        "",
        "the HNS network; default: environment KUBE_NETWORK, else the only one",
        planes=WINDOWS_ONLY,
        why=_HNS,
    ),
    Key(
        "winkernel.sourceVip",
        _T.TEXT,
        "",
        "source of traffic that the node sends on; default on l2bridge: node IP; overlay needs one",
        planes=WINDOWS_ONLY,
        why=_HNS,
        form="address",
    ),
    Key(
        "winkernel.enableDSR",
        _T.BOOL,
        False,
        "direct server return for ClusterIP load balancers",
        planes=WINDOWS_ONLY,
        why=_HNS,
    ),
    Key(
        "winkernel.rootHnsEndpointName",
        _T.TEXT,
        "",
        "HNS endpoint of the host, behind health check load balancers; default: cbr0",
        planes=WINDOWS_ONLY,
        why=_HNS,
    ),
    Key(
        "winkernel.forwardHealthCheckVip",
        _T.BOOL,
        False,
        "load balancers for the health check ports of ingress VIPs",
        planes=WINDOWS_ONLY,
        why=_HNS,
    ),
    Key("logging.format", _T.TEXT, "text", "text or json", form="word"),
    Key("logging.flushFrequency", _T.FLUSH_PERIOD, "5s", "how long buffered information lines may wait"),
    Key("logging.verbosity", _T.INTEGER, 0, "how much is said: 0 to 9"),
    Key("logging.vmodule", _T.VMODULE, (), "verbosity of single files; text only"),
    Key("logging.options.text.splitStream", _T.BOOL, False, "information to standard output; LoggingAlphaOptions"),
    Key("logging.options.text.infoBufferSize", _T.QUANTITY, "0", "information is buffered; LoggingAlphaOptions"),
    Key("logging.options.json.splitStream", _T.BOOL, False, "information to standard output; LoggingAlphaOptions"),
    Key("logging.options.json.infoBufferSize", _T.QUANTITY, "0", "information is buffered; LoggingAlphaOptions"),
    Key(
        "configSyncPeriod",
        _T.DURATION,
        "15m0s",
        "",
        "ConfigSyncPeriod",
        planes=NOWHERE,
        why="objects are watched, never listed again on a timer",
    ),
    Key("enableProfiling", _T.BOOL, False, "/debug/flags/v on the metrics port, which sets the verbosity"),
    Key(
        "showHiddenMetricsForVersion",
        _T.TEXT,
        "",
        "",
        "ShowHiddenMetricsForVersion",
        planes=NOWHERE,
        why="there are no hidden metrics",
    ),
    Key("portRange", _T.TEXT, "", "", planes=NOWHERE, why="unused by kube-proxy too"),
    Key(
        "windowsRunAsService",
        _T.BOOL,
        False,
        "be a service of Windows' service manager, as --windows-service asks for",
        planes=WINDOWS_ONLY,
        why="only Windows has a service manager",
    ),
)

BY_PATH: Mapping[str, Key] = {one.path: one for one in KEYS}
SECTIONS: frozenset[str] = frozenset(
    path.rsplit(".", depth)[0] for path in BY_PATH for depth in range(1, path.count(".") + 1)
)

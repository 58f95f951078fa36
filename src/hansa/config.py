"""Config: one frozen value, made once from flags, environment and file; passed, never fetched.

Parsing of texts happens here (`make_config`); contradictions raise one ConfigError that lists all of them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hansa.net import Address, IPFamily, Prefix


class DetectLocalMode(enum.Enum):
    """How a pod of this node is recognised as the source of a packet (service-semantics section 11)."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


@dataclass(frozen=True, slots=True)
class NodePortAddresses:
    """Which local addresses serve node ports: `primary`, all, or those inside `prefixes` (N4-N8).

    primary=True and prefixes=() is the default; primary=False and prefixes=() means all local addresses.
    """

    primary: bool = True
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowsConfig:
    """Settings of the Windows dataplane (windows-proxy A.1).

    network_name: "" = take environment KUBE_NETWORK, else the only l2bridge/overlay network of the host.
    source_vip: per family; on l2bridge the default is the node IP. source_vip_endpoint: name of an HNS endpoint whose
    address is the source VIP when `source_vip` is not given (#123014). create_source_vip: hansa makes the endpoint.
    critical: services whose frontends go first in every pass. takeover: whether leftovers of kube-proxy may be deleted.
    """

    network_name: str = ""
    source_vip: tuple[Address, ...] = ()
    source_vip_endpoint: str = ""
    create_source_vip: bool = True
    enable_dsr: bool = False
    root_endpoint_name: str = "cbr0"
    forward_health_check_vip: bool = False
    takeover: bool = True
    journal_path: str = ""
    critical: tuple[str, ...] = ("kube-system/kube-dns", "default/kubernetes")
    call_budget: int = 2000
    pass_budget_s: float = 20.0
    verify_per_period: int = 32


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the stages need to know and that does not come from the API or the host.

    proxy_name: this proxy's service-proxy-name, None = the default proxy (S4, S5).
    bind_addresses: replace the Node's primary IP per family (I6). Times are seconds.
    """

    node_name: str
    proxy_name: str | None = None
    bind_addresses: tuple[Address, ...] = ()
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[Prefix, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    masquerade_all: bool = False
    node_port_addresses: NodePortAddresses = NodePortAddresses()
    localhost_node_ports: bool = False
    allow_external_ips: bool = True
    min_sync_period_s: float = 1.0
    sync_period_s: float = 30.0
    full_sync_period_s: float = 3600.0
    windows: WindowsConfig = WindowsConfig()

    def cluster_cidr(self, family: IPFamily) -> Prefix | None:
        """The first cluster CIDR of the family; None = ClusterCIDR detection is not possible there."""
        for prefix in self.cluster_cidrs:
            if (prefix.version == 4) == (family is IPFamily.IPV4):
                return prefix
        return None

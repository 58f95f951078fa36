"""A Windows node to try things on: hansa's real pipeline and dataplane over an emulated HNS.

The pages about HNS use it, and so may you: start Python in the repository's folder.

>>> from examples.bench import Bench
>>> bench = Bench("l2bridge", pods=["10.40.3.11"])
>>> calls = bench.give(bench.service(), bench.slice("10.40.3.11"))
>>> bench.lb("10.96.0.10", 80)["HostComputeEndpoints"]
['10.40.3.11']
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any, Unpack

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, EndpointSlice, Kind, Service
from hansa.config import make_config
from hansa.dataplanes.base import SyncReport
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.hns.api import HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator import BUILDS, L2BRIDGE, L2BRIDGE_DUAL_STACK, Build, Emulator, l2bridge_node, overlay_node
from hansa.hns.features import Feature, supports
from hansa.hns.schema import HnsLoadBalancer, encode
from hansa.pipeline import Pipeline
from hansa.testing import EndpointFields, ServiceFields, endpoint, endpoint_slice, node, service

PERIOD_S = 60.0  # between two syncs: retries are due by then


class Bench:
    """One node, win-1, with hansa on it.

    network: l2bridge or overlay. build: which Windows is emulated. pods: addresses of pods that run here. settings: as
    in a configuration file of kube-proxy, e.g. {"winkernel": {"enableDSR": True}}.
    """

    def __init__(
        self,
        network: str = "l2bridge",
        *,
        build: str | Build = "ws2022",
        pods: Iterable[str] = (),
        settings: dict[str, Any] | None = None,
    ) -> None:
        windows = BUILDS[build] if isinstance(build, str) else build
        bridge = L2BRIDGE_DUAL_STACK if supports(windows.version, Feature.IPV6_DUAL_STACK) else L2BRIDGE
        overlay = network == "overlay"
        self.host: Emulator = overlay_node(windows) if overlay else l2bridge_node(windows, layout=bridge)
        self.now = 0.0
        self.report: SyncReport | None = None
        for pod in pods:
            self.host.add_pod(pod)
        self._settings = settings or {}
        self.start()

    def start(self) -> None:
        """A new hansa process on this node: it remembers nothing."""
        config = make_config(self._settings, node_name="win-1")
        self.pipeline = Pipeline(config, frozenset(self.host.host_addresses))
        self.plane = WindowsDataplane(
            HnsClient(self.host),
            config,
            mac_of=dict.fromkeys(self.host.host_addresses, self.host.machine.mac_address).get,
            rng=random.Random(0),
            clock=lambda: self.now,
        )
        me = node("win-1", addresses=self.host.host_addresses, pod_cidrs=[])
        self.pipeline.apply([Upsert(me), *(Synced(kind) for kind in Kind)])

    def service(self, name: str = "web", **fields: Unpack[ServiceFields]) -> Service:
        """d/`name` at 10.96.0.10, port 80, unless said otherwise."""
        return service(name, **fields)

    def slice(self, *pods: str, of: str = "web", **conditions: Unpack[EndpointFields]) -> EndpointSlice:
        """Endpoints of a service on port 8080: on this node if HNS has a pod with that address, else on win-2."""
        here = {str(address) for each in self.host.endpoints() for address in each.addresses if not each.remote}
        entries = []
        for pod in pods:
            fields: EndpointFields = {"node": "win-1" if pod in here else "win-2", **conditions}
            entries.append(endpoint(pod, **fields))
        return endpoint_slice(f"{of}-slice", entries, service=of)

    def give(self, *objects: ApiObject) -> int:
        """The API tells of objects; one sync follows. The number of calls of the HNS DLL that it took."""
        self.pipeline.apply([Upsert(each) for each in objects])
        return self.sync()

    def take(self, *objects: ApiObject) -> int:
        """The API tells that they are gone; one sync follows."""
        self.pipeline.apply([Delete(each.object_key) for each in objects])
        return self.sync()

    def sync(self) -> int:
        """A full check, as after one period."""
        self.now += PERIOD_S
        before = self.host.call_count
        changes = self.pipeline.take()
        assert changes is not None, "everything is known from the start"
        self.report = self.plane.sync(changes, now=self.now, audit=True)
        return self.host.call_count - before

    def steps(self) -> list[str]:
        """What the last sync did."""
        assert self.report is not None
        return [f"{each.change.verb.value} {each.change.kind} {each.change.key}" for each in self.report.results]

    def shortfalls(self) -> list[str]:
        """What this host cannot do, by name."""
        assert self.report is not None
        return sorted({each.feature for each in self.report.shortfalls})

    def lb(self, vip: str, port: int) -> dict[str, Any] | None:
        """The HNS document of the load balancer at `vip`, or "node" for a node port; endpoints by their address."""
        found = self._balancer(vip, port)
        if found is None:
            return None
        names = {each.guid: str(each.addresses[0]) for each in self.host.endpoints()}
        document: dict[str, Any] = json.loads(encode(found))
        return document | {"HostComputeEndpoints": sorted(names.get(guid, guid) for guid in found.endpoints)}

    def remove_lb(self, vip: str, port: int) -> None:
        """Somebody deletes a load balancer behind hansa's back."""
        found = self._balancer(vip, port)
        assert found is not None
        self.host.remove(HnsKind.LOAD_BALANCER, found.guid)

    def endpoint(self, address: str) -> dict[str, Any] | None:
        """The HNS document of the endpoint with this address."""
        for each in self.host.endpoints():
            if address in [str(one) for one in each.addresses]:
                document: dict[str, Any] = json.loads(encode(each))
                return document
        return None

    def _balancer(self, vip: str, port: int) -> HnsLoadBalancer | None:
        for each in self.host.load_balancers():
            shown = str(each.frontend_vips[0]) if each.frontend_vips else "node"
            if shown == vip and each.port_mappings[0].external_port == port:
                return each
        return None

"""Ask a real HNS what is still assumed about it, and print which switch of the emulator each answer would set.

    python tools/probe_hns.py --network NAME            on a Windows node, elevated; no proxy need be stopped
    python tools/probe_hns.py --network NAME --load 500  and measures calls among so many load balancers
    python tools/probe_hns.py --emulator ws2022          the same questions to the emulator

It makes load balancers and remote endpoints at documentation addresses (198.51.100.0/24), and deletes all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hansa.errors import DataplaneError
from hansa.hns.api import ZERO_GUID, Guid, HnsApi, HnsError, HnsKind
from hansa.hns.client import HnsClient, list_query
from hansa.hns.schema import (
    Distribution,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    MappingFlags,
    PortMapping,
    ProviderAddress,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
    encode,
)
from hansa.net import parse_address

LB, ENDPOINT, NETWORK = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT, HnsKind.NETWORK
OUR_GUID = Guid("6D3C9F0E-0000-4000-8000-0000000000A1")
UNKNOWN = Guid("6D3C9F0E-0000-4000-8000-0000000000FF")
FIRST, SECOND = (parse_address(text) for text in ("198.51.100.21", "198.51.100.22"))
VIP, OTHER_VIP = (parse_address(text) for text in ("198.51.100.1", "198.51.100.2"))
SCTP = 132


@dataclass(frozen=True, slots=True)
class Answer:
    """switch: the field of hansa.hns.emulator.Build that it decides, "" = none yet."""

    question: str
    answer: str
    switch: str = ""


@dataclass
class Probe:
    """What is asked of one HNS. source_vip: the node's address on the network."""

    api: HnsApi
    network_name: str
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = HnsClient(self.api)
        found = self.client.list_ids(NETWORK, name=self.network_name)
        if len(found) != 1:
            raise DataplaneError(f"HNS has {len(found)} networks named {self.network_name}")
        self.network = found[0]
        self.document = decode_network(self.client.read(NETWORK, self.network))
        self.source_vip = self.document.management_ip
        self.made: list[tuple[HnsKind, Guid]] = []

    def say(self, question: str, answer: object, switch: str = "") -> None:
        self.answers.append(Answer(question, str(answer), switch))

    def run(self, load: int) -> list[Answer]:
        with self._tidy():
            self.say("HNS version", self.client.version(), "version")
            one, two = self._endpoint(FIRST), self._endpoint(SECOND)
            balancer = self._ids_and_echo(one)
            self._modify(balancer, one, two)
            self._refusals(one, two)
            self._listing()
            if load:
                self._timing(load, two)
        return self.answers

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        try:
            yield
        finally:
            for kind, guid in reversed(self.made):
                code = self._code(lambda kind=kind, guid=guid: self.client.delete(kind, guid))
                if code and code != "0x80070490":
                    self.say(f"left behind: {kind} {guid}", code)

    def _code(self, action: Callable[[], object]) -> str:
        """ "" if HNS does it, else its code."""
        try:
            action()
        except HnsError as error:
            return f"0x{error.hresult:08X}"
        return ""

    def _balancer(self, endpoints: tuple[Guid, ...], **fields: Any) -> HnsLoadBalancer:
        mapping = PortMapping(
            protocol=fields.pop("protocol", 6),
            internal_port=8080,
            external_port=fields.pop("port", 80),
            distribution=fields.pop("distribution", Distribution.SOURCE_IP),
            flags=MappingFlags.VIP_EXTERNAL_IP,
        )
        made = {"endpoints": endpoints, "source_vip": self.source_vip, "frontend_vips": (VIP,), "owner": "hansa-probe"}
        return HnsLoadBalancer(**{**made, "port_mappings": (mapping,), **fields})

    def _create(self, kind: HnsKind, text: str, guid: Guid = ZERO_GUID) -> str:
        made = self.client.create(kind, text, guid=guid, network=self.network if kind is ENDPOINT else None)
        decoded = decode_endpoint(made) if kind is ENDPOINT else decode_load_balancer(made)
        self.made.append((kind, decoded.guid))
        return made

    def _endpoint(self, address: Any) -> Guid:
        value = HnsEndpoint(
            ip_configurations=(IpConfiguration(address),),
            mac_address="02-11-" + address.packed.hex("-").upper(),
            flags=EndpointFlags.REMOTE,
            owner="hansa-probe",
        )
        if self.document.type.value.lower() == "overlay":
            value = msgspec.structs.replace(value, policies=(ProviderAddress(self.source_vip),))  # type: ignore[arg-type]
        return decode_endpoint(self._create(ENDPOINT, encode(value))).guid

    def _ids_and_echo(self, endpoint: Guid) -> HnsLoadBalancer:
        asked = self._balancer((endpoint,))
        made = decode_load_balancer(self._create(LB, encode(asked), OUR_GUID))
        again = decode_load_balancer(self.client.read(LB, made.guid))
        self.say("a GUID of our choice is kept", made.guid == OUR_GUID, "keeps_caller_guid")
        self.say("Owner is told back", again.owner == asked.owner, "echoes_owner")
        self.say("the load balancer's network is told", again.network is not None, "tells_lb_network")
        self.say("State of a load balancer just made (F27)", again.state)
        told = {
            "SourceVIP": again.source_vip == asked.source_vip,
            "FrontendVIPs": again.frontend_vips == asked.frontend_vips,
            "DistributionType": again.port_mappings[0].distribution == asked.port_mappings[0].distribution,
            "PortMapping.Flags": again.port_mappings[0].flags == asked.port_mappings[0].flags,
        }
        for name, same in told.items():
            self.say(f"{name} is told back as it was asked for", same)
        return again

    def _modify(self, balancer: HnsLoadBalancer, one: Guid, two: Guid) -> None:
        def attempt(**fields: Any) -> str:
            asked = msgspec.structs.replace(balancer, **fields)
            code = self._code(lambda: self.client.modify(LB, balancer.guid, encode(asked)))
            if code:
                return code
            now = decode_load_balancer(self.client.read(LB, balancer.guid))
            same = all(getattr(now, name) == getattr(asked, name) for name in fields)
            return "works" if same else "says S_OK and changes nothing"

        self.say("Modify of the endpoints", attempt(endpoints=(one, two)), "modify")
        mapping = msgspec.structs.replace(balancer.port_mappings[0], distribution=Distribution.NONE)
        self.say("Modify of the distribution", attempt(port_mappings=(mapping,)), "modify_changes_everything")
        self.say("Modify of the frontend", attempt(frontend_vips=(OTHER_VIP,)), "modify_changes_everything")
        short = msgspec.json.encode({"HostComputeEndpoints": [one]}).decode()
        code = self._code(lambda: self.client.modify(LB, balancer.guid, short))
        self.say("Modify with nothing but endpoints", code or "S_OK")

    def _refusals(self, one: Guid, two: Guid) -> None:
        def create(*endpoints: Guid, **fields: Any) -> str:
            document = encode(self._balancer(endpoints, **{"frontend_vips": (OTHER_VIP,), **fields}))
            return self._code(lambda: self._create(LB, document)) or "S_OK"

        used = self._code(lambda: self.client.delete(ENDPOINT, one)) or "S_OK"
        self.say("deleting an endpoint that a load balancer uses", used, "refuses_delete_of_used_endpoint")
        self.say("a load balancer of an endpoint that does not exist", create(UNKNOWN), "unknown_endpoint")
        self.say("a load balancer without endpoints", create())
        self.say("SCTP (H.10)", create(two, protocol=SCTP, port=1132), "lb_protocols")
        self.say("a second load balancer at one frontend", create(two, frontend_vips=(VIP,)))
        twin = self._code(lambda: self._endpoint(SECOND)) or "S_OK"
        self.say("a second remote endpoint with one address", twin, "allows_remote_twins")

    def _listing(self) -> None:
        everything = len(self.client.list_ids(LB))
        try:
            found = len(msgspec.json.decode(self.api.enumerate(LB, list_query(ID=""))))
            self.say(f"an empty id as filter, of {everything} load balancers", f"finds {found}")
        except HnsError as error:
            self.say("an empty id as filter", f"0x{error.hresult:08X}")
        raw = self.client.read(NETWORK, self.network)
        spelled = sorted({word for word in raw.replace('"', " ").split() if word.count(":") > 1 and "-" not in word})
        self.say("IPv6 as HNS writes it", ", ".join(spelled) or "no IPv6 here", "")

    def _timing(self, load: int, endpoint: Guid) -> None:
        """Milliseconds by verb while so many load balancers are there."""
        took: dict[str, list[float]] = {"create": [], "read": [], "list": [], "delete": []}

        def timed(name: str, action: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            value = action()
            took[name].append((time.perf_counter() - start) * 1000)
            return value

        guids = []
        for number in range(load):
            port = 10_000 + number
            text = encode(self._balancer((endpoint,), port=port, flags=1, frontend_vips=(OTHER_VIP,)))
            made = timed("create", lambda text=text: self.client.create(LB, text))
            guids.append(decode_load_balancer(made).guid)
            self.made.append((LB, guids[-1]))
        for guid in guids[-100:]:
            timed("read", lambda guid=guid: self.client.read(LB, guid))
            timed("list", lambda: self.client.list_ids(LB))
        for guid in guids:
            timed("delete", lambda guid=guid: self.client.delete(LB, guid))
            self.made.remove((LB, guid))
        for name, values in took.items():
            tail = statistics.median(values[-100:])
            self.say(f"{name} among {load} load balancers", f"{tail:.1f} ms (first ones {values[0]:.1f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="hansa-br", help="name of the pod network")
    parser.add_argument("--load", type=int, default=0, help="measure calls among so many load balancers (with DSR)")
    parser.add_argument("--emulator", metavar="BUILD", help="ask the emulator of that build instead")
    arguments = parser.parse_args()
    api: HnsApi
    if arguments.emulator:
        from hansa.hns.emulator import BUILDS, l2bridge_node

        api = l2bridge_node(BUILDS[arguments.emulator])
    else:
        from hansa.hns.native import NativeHns

        api = NativeHns()
    for one in Probe(api, arguments.network).run(arguments.load):
        print(f"{one.question:<58} {one.answer:<36} {one.switch}")


if __name__ == "__main__":
    main()

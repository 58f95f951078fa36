"""The older interface, HNSCall: what of it an emulated HNS answers. Pure; `hansa.hns.emulator.server` is its way in.

The version, networks, endpoints, and load balancers as policy lists: older CNI plug-ins make networks and endpoints in
this way; kube-proxy asks for policy lists at its start, and gives up if it gets none; `Get-HnsPolicyList |
Remove-HnsPolicyList` is how people delete load balancers. Everything else is refused in words. The call itself
succeeds; a refusal is in the response. Evidence: hcn.md 1.8 and 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from hansa.hns.api import ZERO_GUID, Guid, HnsApi, HnsError, HnsKind, parse_guid
from hansa.hns.client import HnsClient
from hansa.hns.emulator.refusals import RULES, system_text
from hansa.hns.errors import ErrorClass, classify
from hansa.hns.record import E_INVALIDARG, E_NOTIMPL, write_error_record, write_version_response
from hansa.hns.schema import (
    SCHEMA_VERSION,
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    MalformedHnsObject,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
    parse_json,
)
from hansa.hns.schema1 import (
    Fields,
    balancer_document,
    endpoint_document,
    endpoint_listing,
    network_document,
    network_listing,
    policy_list,
)

T = TypeVar("T")

NETWORK, ENDPOINT, LB = HnsKind.NETWORK, HnsKind.ENDPOINT, HnsKind.LOAD_BALANCER


def respond(api: HnsApi, method: str, path: str, body: str) -> str:
    """The response to `method` on `path`, e.g. GET `/policylists/`; body: "" or a JSON object.

    Raises HnsError if nobody answers: then there is no response either.
    """
    if (method, path) == ("GET", "/globals/version"):
        return write_version_response(api.version())
    try:
        collection, _, rest = path.strip("/").partition("/")
        asked = _Asked(method, path, rest, body)
        match collection.lower():
            case "policylists":
                return _success(_policy_lists(HnsClient(api), asked))
            case "networks":
                return _success(_networks(HnsClient(api), asked))
            case "endpoints":
                return _success(_endpoints(HnsClient(api), asked))
            case _:
                raise _unknown(asked)
    except HnsError as error:
        if classify(error) is ErrorClass.UNAVAILABLE:
            raise
        return write_error_record(error.hresult, error.text)


class _Asked(NamedTuple):
    """One request. rest: of the path, after the collection; body: "" or a JSON object."""

    method: str
    path: str
    rest: str
    body: str


def _policy_lists(client: HnsClient, asked: _Asked) -> object:
    match asked.method, asked.rest:
        case "GET", "":
            return [policy_list(found) for guid in client.list_ids(LB) if (found := _read(client, guid)) is not None]
        case "GET", rest:
            return policy_list(decode_load_balancer(client.read(LB, _guid(rest))))
        case "DELETE", rest if rest:
            client.delete(LB, _guid(rest))
            return None
        case "POST", "":
            document, _ = _converted(asked, balancer_document)
            return policy_list(decode_load_balancer(client.create(LB, _settings(document), guid=ZERO_GUID)))
        case _:
            raise _unknown(asked)


def _networks(client: HnsClient, asked: _Asked) -> object:
    match asked.method, asked.rest:
        case "GET", "":
            found = (_read_network(client, guid) for guid in client.list_ids(NETWORK))
            return [network_listing(one) for one in found if one is not None]
        case "GET", rest:
            return network_listing(decode_network(client.read(NETWORK, _guid(rest))))
        case "DELETE", rest if rest:
            client.delete(NETWORK, _guid(rest))
            return None
        case "POST", "":
            made = client.create(NETWORK, _settings(_converted(asked, network_document)), guid=ZERO_GUID)
            return network_listing(decode_network(made))
        case "POST", rest:
            return network_listing(
                decode_network(client.modify(NETWORK, _guid(rest), _policies(asked, network_document)))
            )
        case _:
            raise _unknown(asked)


def _endpoints(client: HnsClient, asked: _Asked) -> object:
    guid, _, verb = asked.rest.partition("/")
    match asked.method, guid, verb:
        case "GET", "", "":
            found = (_read_endpoint(client, each) for each in client.list_ids(ENDPOINT))
            return [_listed(client, one) for one in found if one is not None]
        case "GET", _, "":
            return _listed(client, decode_endpoint(client.read(ENDPOINT, _guid(guid))))
        case "DELETE", _, "" if guid:
            client.delete(ENDPOINT, _guid(guid))
            return None
        case "POST", "", "":
            document = _converted(asked, endpoint_document)
            network = _converted(asked, lambda fields: _network_of(client, fields))
            return _listed(client, decode_endpoint(client.create(ENDPOINT, _settings(document), network=network)))
        case "POST", _, "":
            policies = _policies(asked, endpoint_document)
            return _listed(client, decode_endpoint(client.modify(ENDPOINT, _guid(guid), policies)))
        case "POST", _, "attach" | "detach":
            word = "Add" if verb == "attach" else "Remove"
            request: dict[str, object] = {"ResourceType": "Port", "RequestType": word, "Settings": {}}
            return _listed(client, decode_endpoint(client.modify(ENDPOINT, _guid(guid), json.dumps(request))))
        case _:
            raise _unknown(asked)


def _listed(client: HnsClient, endpoint: HnsEndpoint) -> dict[str, object]:
    """Schema 2 does not tell the state, which follows from the namespace (inferred)."""
    network = _read_network(client, endpoint.network)
    listing = endpoint_listing(endpoint, "" if network is None else network.name)
    state = EndpointState.CREATED if endpoint.namespace is None else EndpointState.ATTACHED_SHARING
    return {**listing, "State": int(state)}


def _network_of(client: HnsClient, fields: Fields) -> Guid:
    """The network that an endpoint asks for, by id or by name."""
    if fields.get("VirtualNetwork"):
        return _guid(str(fields.get("VirtualNetwork")))
    name = str(fields.get("VirtualNetworkName") or "")
    found = client.list_ids(NETWORK, name=name) if name else ()
    if not found:
        raise HnsError("HNSCall", RULES["EV-02"].hresult, system_text(RULES["EV-02"].hresult))
    return found[0]


def _policies(asked: _Asked, convert: Callable[[Fields], dict[str, object]]) -> str:
    """POST on what exists is an update; of its policies here, since everything else of an object stays (inferred)."""
    settings = {"Policies": _converted(asked, convert)["Policies"]}
    return json.dumps({"ResourceType": "Policy", "RequestType": "Update", "Settings": settings})


def _read_network(client: HnsClient, guid: Guid) -> HnsNetwork | None:
    return _read_as(lambda: decode_network(client.read(NETWORK, guid)))


def _read_endpoint(client: HnsClient, guid: Guid) -> HnsEndpoint | None:
    return _read_as(lambda: decode_endpoint(client.read(ENDPOINT, guid)))


def _read(client: HnsClient, guid: Guid) -> HnsLoadBalancer | None:
    return _read_as(lambda: decode_load_balancer(client.read(LB, guid)))


def _read_as(read: Callable[[], T]) -> T | None:
    """None: it is gone by now, or what is left of it makes no sense."""
    try:
        return read()
    except MalformedHnsObject:
        return None
    except HnsError as error:
        if classify(error) is ErrorClass.GONE:
            return None
        raise


def _guid(text: str) -> Guid:
    try:
        return parse_guid(text)
    except ValueError as error:
        raise HnsError("HNSCall", E_INVALIDARG, f"{text} is no GUID. ") from error


def _converted(asked: _Asked, convert: Callable[[Fields], T]) -> T:
    """What `convert` makes of the body; if that is not JSON, or not what it should be, the caller is told so."""
    try:
        return convert(Fields(parse_json(asked.body)))
    except ValueError as error:
        raise HnsError("HNSCall", E_INVALIDARG, f"The document cannot be read: {error} ") from error


def _settings(document: Mapping[str, object]) -> str:
    """As HCN takes it; the id is HNS's to choose."""
    told = {name: value for name, value in document.items() if value is not None and name != "ID"}
    return json.dumps({**told, "SchemaVersion": SCHEMA_VERSION})


def _success(output: object) -> str:
    """Without output, as after a DELETE, there is none."""
    envelope = {"Success": True} if output is None else {"Success": True, "Output": output}
    return json.dumps(envelope, separators=(",", ":"))


def _unknown(asked: _Asked) -> HnsError:
    return HnsError("HNSCall", E_NOTIMPL, f"This service does not know {asked.method} {asked.path}. ")

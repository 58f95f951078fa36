"""The older interface, HNSCall: what of it an emulated HNS answers. Pure; `hansa.hns.emulator.server` is its way in.

The version, and load balancers as policy lists: kube-proxy asks for these lists at its start, and gives up if it gets
none; `Get-HnsPolicyList | Remove-HnsPolicyList` is how people delete load balancers. Everything else is refused in
words. The call itself succeeds; a refusal is in the response. Evidence: hcn.md 1.8 and 6.
"""

from __future__ import annotations

import json

from hansa.hns.api import ZERO_GUID, Guid, HnsApi, HnsError, HnsKind, parse_guid
from hansa.hns.client import HnsClient
from hansa.hns.errors import ErrorClass, classify
from hansa.hns.record import E_INVALIDARG, E_NOTIMPL, write_error_record, write_version_response
from hansa.hns.schema import HnsLoadBalancer, MalformedHnsObject, decode_load_balancer
from hansa.hns.schema1 import CutOff, Fields, balancer_document, policy_list

LISTS = "policylists"
LB = HnsKind.LOAD_BALANCER


def respond(api: HnsApi, method: str, path: str, body: str) -> str:
    """The response to `method` on `path`, e.g. GET `/policylists/`; body: "" or a JSON object.

    Raises HnsError if nobody answers: then there is no response either.
    """
    if (method, path) == ("GET", "/globals/version"):
        return write_version_response(api.version())
    try:
        collection, _, rest = path.strip("/").partition("/")
        if collection.lower() != LISTS:
            raise _unknown(method, path)
        return _success(_policy_lists(HnsClient(api), method, path, rest, body))
    except HnsError as error:
        if classify(error) is ErrorClass.UNAVAILABLE:
            raise
        return write_error_record(error.hresult, error.text)


def _policy_lists(client: HnsClient, method: str, path: str, rest: str, body: str) -> object:
    match method, rest:
        case "GET", "":
            return [policy_list(found) for guid in client.list_ids(LB) if (found := _read(client, guid)) is not None]
        case "GET", _:
            return policy_list(decode_load_balancer(client.read(LB, _guid(rest))))
        case "DELETE", _ if rest:
            client.delete(LB, _guid(rest))
            return None
        case "POST", "":
            document = json.dumps({**_document(body), "SchemaVersion": {"Major": 2, "Minor": 0}})
            return policy_list(decode_load_balancer(client.create(LB, document, guid=ZERO_GUID)))
        case _:
            raise _unknown(method, path)


def _read(client: HnsClient, guid: Guid) -> HnsLoadBalancer | None:
    """None: it is gone by now, or what is left of it makes no sense."""
    try:
        return decode_load_balancer(client.read(LB, guid))
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


def _document(body: str) -> dict[str, object]:
    try:
        document, _ = balancer_document(Fields(json.loads(body)))
    except (ValueError, CutOff) as error:
        raise HnsError("HNSCall", E_INVALIDARG, f"The policy list cannot be read: {error} ") from error
    return {name: value for name, value in document.items() if value is not None and name != "ID"}


def _success(output: object) -> str:
    """Without output, as after a DELETE, there is none."""
    envelope = {"Success": True} if output is None else {"Success": True, "Output": output}
    return json.dumps(envelope, separators=(",", ":"))


def _unknown(method: str, path: str) -> HnsError:
    return HnsError("HNSCall", E_NOTIMPL, f"This service does not know {method} {path}. ")

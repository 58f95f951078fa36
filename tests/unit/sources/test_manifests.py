"""Manifest text becomes objects and faults: what kubectl prints works as it is, and one fault never costs the rest."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import clusters

from hansa.api.change import Delete, Malformed, Upsert
from hansa.api.objects import Kind, ObjectKey
from hansa.sources.manifests import Reading, continue_reading, differences, merge, read_manifest, unreadable
from hansa.testing import (
    config,
    endpoint_slice,
    manifest,
    manifest_endpoint_slice,
    manifest_node,
    manifest_service,
    node,
    service,
    service_cidr,
)

laws = settings(max_examples=50, deadline=None, derandomize=True)

WEB, WEB_A, N1, CIDR = service("web"), endpoint_slice("web-a", ["10.1.1.11"]), node(), service_cidr()
ALL = (WEB, WEB_A, N1, CIDR)


def as_yaml(*documents: Any) -> bytes:
    return yaml.dump_all(documents, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)).encode()


def listed(*items: Any, kind: str = "List", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": ""}, "items": list(items), **fields}


def objects(reading: Reading) -> list[object]:
    return [change.object for change in reading.objects.values() if isinstance(change, Upsert)]


def faults(reading: Reading) -> list[str]:
    return [str(fault) for fault in reading.faults]


@pytest.mark.parametrize(
    "data",
    [
        as_yaml(*(manifest(one) for one in ALL)),
        as_yaml(listed(*(manifest(one) for one in ALL))),
        as_yaml(listed(manifest(WEB), manifest(WEB_A)), listed(listed(manifest(N1)), manifest(CIDR))),
        json.dumps(listed(*(manifest(one) for one in ALL))).encode(),
        json.dumps(listed(manifest(WEB), listed(manifest(WEB_A), manifest(N1)), manifest(CIDR)), indent=2).encode(),
        b"\n\n " + json.dumps(listed(*(manifest(one) for one in ALL))).encode("utf-8"),
        json.dumps(listed(*(manifest(one) for one in ALL))).encode("utf-16"),
        b"\xef\xbb\xbf" + as_yaml(*(manifest(one) for one in ALL)).replace(b"\n", b"\r\n"),
    ],
)
def test_forms(data: bytes) -> None:
    """Documents, lists, lists in lists; YAML and JSON; as kubectl, PowerShell and Notepad write them."""
    found = read_manifest(data, name="all.txt")
    assert (objects(found), faults(found), found.is_partial) == ([*ALL], [], False)


@pytest.mark.parametrize("write", [as_yaml, lambda one: json.dumps(one).encode()])
def test_items_of_a_typed_list_need_no_kind(write: Any) -> None:
    """What `kubectl get --raw` prints."""
    bare_service, bare_slice = manifest(WEB), manifest(WEB_A)
    for one in (bare_service, bare_slice):
        del one["kind"], one["apiVersion"]
    found = read_manifest(write(listed(bare_service, kind="ServiceList")), name="x")
    assert objects(found) == [WEB]
    slices = listed(bare_slice, kind="EndpointSliceList", apiVersion="discovery.k8s.io/v1")
    assert objects(read_manifest(write(slices), name="x")) == [WEB_A]


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"# nothing\n---\n", b'{"kind":"List","items":[]}', b'{"kind":"List","items":null}']
)
def test_nothing(data: bytes) -> None:
    found = read_manifest(data, name="x.yaml")
    assert (found.objects, faults(found), found.is_partial) == ({}, [], False)


def test_the_demo_cluster() -> None:
    found = read_manifest((files("hansa") / "demo" / "cluster.yaml").read_bytes(), name="cluster.yaml")
    assert not found.faults
    assert found.objects


@pytest.mark.parametrize("write", [lambda *them: as_yaml(*them), lambda *them: json.dumps(listed(*them)).encode()])
def test_other_kinds_are_counted(write: Any) -> None:
    others = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "web"}},
        {"apiVersion": "example.com/v1", "kind": "AllowList", "metadata": {"name": "x"}},
    ]
    found = read_manifest(write(*others, manifest(WEB)), name="x")
    assert objects(found) == [WEB]
    assert found.ignored == {"Pod": 2, "Service": 1, "AllowList": 1}
    assert not found.faults


@pytest.mark.parametrize("write", [lambda *them: as_yaml(*them), lambda *them: json.dumps(listed(*them)).encode()])
def test_selection(write: Any) -> None:
    """Service-semantics section 1, on the client's side."""
    headless_slice = manifest_endpoint_slice("b")
    headless_slice["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
    data = write(
        manifest(WEB),
        manifest_service("other", proxy_name="other"),
        manifest_service("mine", proxy_name="hansa"),
        manifest_service("headless", headless=True),
        headless_slice,
        manifest_node("n1"),
        manifest_node("n2"),
    )
    assert objects(read_manifest(data, name="x", config=config())) == [WEB, N1]
    mine = service("mine", proxy_name="hansa")
    assert objects(read_manifest(data, name="x", config=config(proxy_name="hansa"))) == [mine, N1]
    assert len(objects(read_manifest(data, name="x"))) == 7, "without a Config there is no selection"


@pytest.mark.parametrize("write", [lambda *them: as_yaml(*them), lambda *them: json.dumps(listed(*them)).encode()])
def test_one_broken_object(write: Any) -> None:
    broken = manifest_service("broken")
    broken["spec"]["ports"][0].update(port="http", nodePort=70000)
    found = read_manifest(write(broken, manifest(WEB)), name="x")
    assert objects(found) == [WEB]
    malformed = found.objects[ObjectKey(Kind.SERVICE, "d", "broken")]
    assert isinstance(malformed, Malformed)
    assert [fault.field for fault in malformed.faults] == ["spec.ports[0].port", "spec.ports[0].nodePort"]
    assert not found.is_partial, "the file was read in full"


@pytest.mark.parametrize("write", [lambda *them: as_yaml(*them), lambda *them: json.dumps(listed(*them)).encode()])
def test_an_old_version_is_malformed_and_says_what_to_write(write: Any) -> None:
    old = {**manifest(WEB_A), "apiVersion": "discovery.k8s.io/v1beta1"}
    (found,) = read_manifest(write(old), name="x").objects.values()
    assert isinstance(found, Malformed)
    assert "discovery.k8s.io/v1" in found.faults[0].remedy


def test_a_fault_in_one_document() -> None:
    data = as_yaml(manifest(WEB)) + b"---\nkind: Service\nspec: {a: 1]\n---\n" + as_yaml(manifest(WEB_A))
    found = read_manifest(data, name="web.yaml")
    assert objects(found) == [WEB, WEB_A]
    assert found.is_partial
    line = data[: data.index(b"1]")].count(b"\n") + 1
    (fault,) = faults(found)
    assert fault.startswith(f"web.yaml:{line}:12:")


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b'{"kind": "List",\n "items": [}', "web.json", "web.json:2:12: is not JSON"),
        (b'{"kind": "List"', "web.json", "web.json: is not JSON"),
        (b"kind: Service\nkind: Service\n", "web.yaml", "web.yaml:2:1: the key 'kind' is given twice, first in line 1"),
        (b"just text", "web.yaml", "web.yaml:1: is not an object with apiVersion, kind and metadata"),
        (b"a: 1", "web.yaml", "web.yaml:1: has no kind"),
        (b"---\n---\nkind: Service\napiVersion: v1\n", "w.yaml", "w.yaml:2: Service has no metadata.name"),
        (b"[1]", "web.json", "web.json: is not an object"),
        (b'{"kind":"List","items":[5]}', "web.json", "web.json items[0]: is not an object"),
        (b"kind: List\nitems: [{a: 1}]", "web.yaml", "web.yaml:1 items[0]: has no kind"),
        (b"a: 1\nb: \xff\n", "web.yaml", "web.yaml:2: is not text: invalid start byte (save the file as UTF-8)"),
        (b"[" * 100_000, "web.json", "web.json: is not JSON"),
        (b"[" * 100_000, "web.yaml", "web.yaml:1:"),
    ],
)
def test_faults_have_a_place(data: bytes, name: str, expected: str) -> None:
    found = read_manifest(data, name=name)
    assert len(found.faults) == 1
    assert faults(found)[0].startswith(expected)
    assert found.is_partial


def test_yaml_may_start_with_a_brace() -> None:
    data = b"{kind: Service, apiVersion: v1, metadata: {name: web}, spec: {clusterIP: 10.96.0.10}}"
    found = read_manifest(data, name="web.yaml")
    assert list(found.objects) == [ObjectKey(Kind.SERVICE, "default", "web")]


def test_norway_is_a_name() -> None:
    data = b"kind: Service\napiVersion: v1\nmetadata: {name: no, namespace: on}\nspec: {clusterIP: 10.96.0.10}\n"
    assert list(read_manifest(data, name="x").objects) == [ObjectKey(Kind.SERVICE, "on", "no")]


@pytest.mark.parametrize("write", [lambda *them: as_yaml(*them), lambda *them: json.dumps(listed(*them)).encode()])
def test_an_object_given_twice_is_a_fault_and_the_later_one_counts(write: Any) -> None:
    found = read_manifest(write(manifest_service("web", node_port=30000), manifest(WEB)), name="x")
    assert objects(found) == [WEB]
    (fault,) = faults(found)
    assert "Service d/web is also at x" in fault
    assert not found.is_partial


# Several files, several readings


def test_files_are_merged_in_the_order_of_their_names() -> None:
    one = read_manifest(as_yaml(manifest_service("web", node_port=30000), {"kind": "Pod"}), name="a.yaml")
    other = read_manifest(as_yaml(manifest(WEB), {"kind": "Pod"}), name="b.yaml")
    merged = merge({"b.yaml": other, "a.yaml": one})
    assert merged.objects == {WEB.object_key: Upsert(WEB)}
    assert [str(fault) for fault in merged.faults] == ["b.yaml: Service d/web is also in a.yaml (remove one of them)"]
    assert merged.ignored == {"Pod": 2}


def test_what_a_file_said_stays_in_force_while_it_cannot_be_read_in_full() -> None:
    before = read_manifest(as_yaml(manifest(WEB), manifest(WEB_A)), name="x")
    partly = continue_reading(
        before, read_manifest(as_yaml(manifest_service("web", node_port=30000)) + b"---\na: [", name="x")
    )
    assert objects(partly) == [service("web", node_port=30000), WEB_A]
    assert partly.faults
    gone = continue_reading(partly, unreadable("x", "Permission denied"))
    assert gone.objects == partly.objects
    assert faults(gone) == ["x: cannot be read: Permission denied"]
    whole = continue_reading(gone, read_manifest(as_yaml(manifest(WEB)), name="x"))
    assert (objects(whole), faults(whole)) == ([WEB], [])


def test_a_malformed_object_is_said_again_only_if_it_changes() -> None:
    key = WEB.object_key
    broken = manifest_service("web")
    broken["spec"]["ports"][0]["port"] = 0
    malformed = read_manifest(as_yaml(broken), name="x").objects
    assert differences({key: Upsert(WEB)}, malformed) == tuple(malformed.values())
    assert differences(malformed, malformed) == ()
    assert differences(malformed, {key: Upsert(WEB)}) == (Upsert(WEB),)
    assert differences(malformed, {}) == (Delete(key),)


@laws
@given(clusters(), clusters())
def test_differences_lead_from_one_state_to_the_other(before: Any, after: Any) -> None:
    first = {item.object_key: Upsert(item) for item in before.objects}
    second = {item.object_key: Upsert(item) for item in after.objects}
    state = dict(first)
    for change in differences(first, second):
        if isinstance(change, Upsert):
            assert state.get(change.key) != change
            state[change.key] = change
        else:
            del state[change.key]
    assert state == second


@laws
@given(clusters(), st.booleans())
def test_json_and_yaml_say_the_same(cluster: Any, in_a_list: bool) -> None:
    items = [manifest(item) for item in cluster.objects]
    data = json.dumps(listed(*items)).encode()
    as_documents = as_yaml(listed(*items)) if in_a_list else as_yaml(*items)
    found = read_manifest(data, name="x")
    assert found.objects == read_manifest(as_documents, name="x").objects
    assert objects(found) == [*cluster.objects]


@laws
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    found = read_manifest(data, name="x")
    assert not found.objects
    assert found.is_partial == bool(found.faults)

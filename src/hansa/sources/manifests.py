"""Manifest text becomes API objects and faults; several files become one state, and two states a batch of Changes.

Accepted are YAML and JSON, many documents to a file, lists of any sort (`kind: List`, `ServiceList`), and kinds that
hansa does not read, which are counted and left alone: what `kubectl get svc,endpointslices,nodes -A -o yaml` prints
works as it is.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
from msgspec import Struct

from hansa.api.change import Change, Delete, Malformed, Upsert
from hansa.api.decode import decode, decode_object, object_key
from hansa.api.objects import Kind, ObjectKey
from hansa.api.wire import salvage
from hansa.config import Config
from hansa.errors import Fault, MalformedObject
from hansa.sources.selection import Header, is_selected
from hansa.sources.yaml_text import Document, YamlFault, load, split_documents

# Spellings that need no further look; everything else takes the slow way, which knows the reasons for refusals.
_EXACT: dict[tuple[str | None, str | None], Kind] = {
    ("v1", "Service"): Kind.SERVICE,
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind.ENDPOINT_SLICE,
    ("v1", "Node"): Kind.NODE,
    ("networking.k8s.io/v1", "ServiceCIDR"): Kind.SERVICE_CIDR,
}
# PowerShell 5 writes UTF-16 when output is redirected into a file; Notepad puts a mark before UTF-8.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

State = Mapping[ObjectKey, Upsert | Malformed]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file says.

    faults: what could not be read, with file, line and column. is_partial: because of them objects may be missing.
    ignored: how many objects of which kinds hansa does not read. is_open_failure: nothing was read, try again.
    """

    objects: State = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    is_partial: bool = False
    is_open_failure: bool = False


def read_manifest(data: bytes, *, name: str, config: Config | None = None) -> Reading:
    """Read the content of the file `name`; `config` says which objects this proxy watches, None = all of them."""
    reader = _Reader(name, config)
    try:
        text = _decode_text(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reader.fault(f"{name}:{line}", f"is not text: {error.reason}", "save the file as UTF-8")
        return reader.reading()
    if text.lstrip()[:1] in ("{", "["):
        try:
            reader.take_json(text.encode(), name)
        except (msgspec.DecodeError, RecursionError) as error:
            if name.endswith(".json"):
                reader.fault(_json_place(name, text, str(error)), f"is not JSON: {error}")
                return reader.reading()
            reader = _Reader(name, config)  # YAML may start with a brace, too
        else:
            return reader.reading()
    for document in split_documents(text):
        reader.take_yaml(document)
    return reader.reading()


def unreadable(name: str, reason: str) -> Reading:
    """A file that is there but cannot be read: its objects stay in force."""
    return Reading(faults=(Fault(name, f"cannot be read: {reason}"),), is_partial=True, is_open_failure=True)


def continue_reading(old: Reading | None, new: Reading) -> Reading:
    """A file read again: where parts of it cannot be read, the objects that might have stood there stay in force."""
    if old is None or not new.is_partial:
        return new
    return replace(new, objects={**old.objects, **new.objects})


@dataclass(frozen=True, slots=True)
class Merged:
    """All files together."""

    objects: State
    faults: tuple[Fault, ...]
    ignored: Mapping[str, int]


def merge(readings: Mapping[str, Reading]) -> Merged:
    """Files in the order of their names; an object that stands in two of them is a fault, and the later one counts."""
    objects: dict[ObjectKey, Upsert | Malformed] = {}
    found_in: dict[ObjectKey, str] = {}
    faults: list[Fault] = []
    ignored: Counter[str] = Counter()
    for name, reading in sorted(readings.items()):
        faults += reading.faults
        ignored.update(reading.ignored)
        if len(readings) > 1:
            for key in reading.objects:
                if key in found_in:
                    faults.append(Fault(name, f"{key} is also in {found_in[key]}", "remove one of them"))
                found_in[key] = name
        objects.update(reading.objects)
    return Merged(objects, tuple(faults), ignored)


def differences(before: State, after: State) -> tuple[Change, ...]:
    """What has to be said so that who knows `before` knows `after`; new forms come before deletions."""
    changed = [change for key, change in after.items() if (old := before.get(key)) is None or change != old]
    return (*changed, *(Delete(key) for key in before if key not in after))


class _JsonRoot(Struct):
    apiVersion: str | None = None
    kind: str | None = None
    items: list[msgspec.Raw] | None = None


_JSON_ROOT_DECODER = msgspec.json.Decoder(_JsonRoot)
_HEADER_DECODER = msgspec.json.Decoder(Header)


class _Reader:
    """Gathers what one file says."""

    def __init__(self, name: str, config: Config | None) -> None:
        self._name = name
        self._config = config
        self._objects: dict[ObjectKey, Upsert | Malformed] = {}
        self._places: dict[ObjectKey, str] = {}
        self._faults: list[Fault] = []
        self._ignored: Counter[str] = Counter()
        self._is_partial = False

    def reading(self) -> Reading:
        return Reading(self._objects, tuple(self._faults), self._ignored, self._is_partial)

    def fault(self, place: str, text: str, remedy: str = "") -> None:
        """Something cannot be read, so objects may be missing."""
        self._faults.append(Fault(place, text, remedy))
        self._is_partial = True

    def take_yaml(self, document: Document) -> None:
        try:
            value = load(document)
        except YamlFault as error:
            self.fault(f"{self._name}:{error.line}:{error.column}", error.text)
            return
        if value is not None:
            self.take(value, f"{self._name}:{document.first_line}")

    def take_json(self, data: bytes, place: str) -> None:
        """Take a JSON text. Raises msgspec.DecodeError, before anything was taken, if it is none."""
        try:
            root = _JSON_ROOT_DECODER.decode(data)
        except msgspec.ValidationError:
            self.take(msgspec.json.decode(data), place)
            return
        if not _is_list(root.kind, root.items) or root.items is None:
            self.take(msgspec.json.decode(data), place)
            return
        item_kind, item_version = _of_items(root.kind, root.apiVersion)
        for index, raw in enumerate(root.items):
            self._take_json_item(raw, f"{place} items[{index}]", item_kind, item_version)

    def _take_json_item(self, raw: msgspec.Raw, place: str, kind_name: str | None, version: str | None) -> None:
        """The fast way for objects written as usual; 20,000 of them are read without building a dict."""
        try:
            header = _HEADER_DECODER.decode(raw)
        except msgspec.ValidationError:
            kind = None
        else:
            kind = _EXACT.get((header.apiVersion or version, header.kind or kind_name))
        if kind is None:
            self.take(_with_kind(msgspec.json.decode(raw), kind_name, version), place)
            return
        if self._config is not None and not is_selected(kind, header, self._config):
            return
        try:
            change = decode(kind, raw)
        except MalformedObject:
            self.take(_with_kind(msgspec.json.decode(raw), kind_name, version), place)
        else:
            self._add(change, place)

    def take(self, value: object, place: str) -> None:
        """Take a parsed object, or a list of them."""
        if not isinstance(value, dict):
            self.fault(place, "is not an object with apiVersion, kind and metadata")
            return
        kind_name = value.get("kind")
        if not isinstance(kind_name, str) or not kind_name:
            self.fault(place, "has no kind", "every object needs apiVersion, kind and metadata")
            return
        if _is_list(kind_name, value.get("items")):
            version = value.get("apiVersion")
            item_kind, item_version = _of_items(kind_name, version if isinstance(version, str) else None)
            for index, item in enumerate(value.get("items") or ()):
                self.take(_with_kind(item, item_kind, item_version), f"{place} items[{index}]")
            return
        key = object_key(value)
        if key is None:
            self._ignored[kind_name] += 1
            return
        if self._config is not None and not is_selected(key.kind, salvage(value, Header)[0], self._config):
            return
        if not key.name:
            self.fault(place, f"{key.kind} has no metadata.name", "every object needs a name")
            return
        try:
            self._add(decode_object(value), place)
        except MalformedObject as error:
            self._add(Malformed(key, error.faults), place)

    def _add(self, change: Upsert | Malformed, place: str) -> None:
        key = change.key
        if key in self._objects:
            text = f"{key} is also at {self._places[key]}; the later one counts"
            self._faults.append(Fault(place, text, "remove one of them"))
        self._objects[key] = change
        self._places[key] = place


def _is_list(kind_name: str | None, items: object) -> bool:
    """Whether this is one of the API's lists: their kinds end so, and an empty one may have `items: null`."""
    return kind_name == "List" or ((kind_name or "").endswith("List") and isinstance(items, list))


def _of_items(kind_name: str | None, version: str | None) -> tuple[str | None, str | None]:
    """Kind and version of items that do not say: a ServiceList holds Services; a List's items speak for themselves."""
    return (None, None) if kind_name in (None, "List") else (kind_name.removesuffix("List"), version)


def _with_kind(item: object, kind_name: str | None, version: str | None) -> object:
    if not isinstance(item, dict) or kind_name is None or "kind" in item:
        return item
    return {"apiVersion": version, "kind": kind_name, **item}


def _decode_text(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8")


def _json_place(name: str, text: str, message: str) -> str:
    """Turn msgspec's "(byte 17)" into line and column."""
    found = re.search(r"\(byte (\d+)\)", message)
    if found is None:
        return name
    before = text.encode()[: int(found[1])].decode("utf-8", "replace")
    return f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"

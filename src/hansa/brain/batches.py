"""A difference as a batch of messages, ready for the stream, in the order that each API promises.

Only what looks different from where the follower looks is sent; bytes are made once for all who see the same. A batch
now and then is BREATHE instead of a message: there was much to compare, and others want their turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from hansa.brain.cluster import Difference, ServiceState, Viewpoint, by_path
from hansa.sources.kpng import cluster, local, node, shared
from hansa.sources.kpng.local import Item, LocalItems
from hansa.sources.kpng.wire import localv1, nodev1

# Far below the 4 MiB at which gRPC's clients stop reading, and large enough that the cost of a message does not matter.
MESSAGE_BYTES = 256 * 1024
BREATHE = b""
# Services between two breaths: about two milliseconds' worth where views have to be made first.
BREATH = 8
_SERVICES, _ENDPOINTS = localv1.Set.ServicesSet, localv1.Set.EndpointsSet
_SET_TAG = b"\x1a"  # field 3 of WatchResponse, length-delimited


def local_batch(difference: Difference) -> Iterator[bytes]:
    """Operations of localv1 without the Sync: services set; endpoints deleted, then set; services deleted."""
    changed: list[tuple[LocalItems, LocalItems]] = []
    for number, change in enumerate(by_path(difference.services)):
        if number % BREATH == BREATH - 1:
            yield BREATHE
        before = _local_items(change.before, difference.before)
        after = _local_items(change.after, difference.after)
        if before is not after and before != after:
            changed.append((before, after))
    services = [after.service for before, after in changed if after.service and after.service != before.service]
    for item in sorted(services):
        yield item.op
    for before, after in reversed(changed):
        kept = {one.path for one in after.endpoints}
        for item in reversed(before.endpoints):
            if item.path not in kept:
                yield shared.delete_op(_ENDPOINTS, item.path)
    for before, after in changed:
        known = set(before.endpoints)
        for item in after.endpoints:
            if item not in known:
                yield item.op
    gone = [before.service.path for before, after in changed if before.service and after.service is None]
    for path in sorted(gone, reverse=True):
        yield shared.delete_op(_SERVICES, path)


def _local_items(state: ServiceState | None, viewpoint: Viewpoint | None) -> LocalItems:
    if state is None or viewpoint is None:
        return local.NOTHING
    seen_from = state.seen_from(viewpoint)
    found = state.memo.get(("local", seen_from))
    if found is None:
        items = cast("dict[tuple[str, bytes], Item]", state.memo.setdefault("local", {}))
        found = state.memo["local", seen_from] = local.local_items(state.service, state.view(viewpoint), items)
    return cast("LocalItems", found)


def global_batch(difference: Difference) -> Iterator[bytes]:
    """Operations of globalv1 without the Sync: nodes, services, endpoints set; endpoints, services, nodes deleted."""
    nodes = [(cluster.node_item(one.after), one) for one in difference.nodes if one.after is not None]
    for item, _ in sorted(nodes, key=lambda each: each[0].path):
        yield item.op
    sets: list[Item] = []
    endpoint_changes: list[tuple[tuple[Item, ...], tuple[Item, ...]]] = []
    gone: list[str] = []
    for number, change in enumerate(by_path(difference.services)):
        if number % BREATH == BREATH - 1:
            yield BREATHE
        before, after = change.before, change.after
        old, new = _service_item(before), _service_item(after)
        if new is not None and new != old:
            sets.append(new)
        if new is None and old is not None:
            gone.append(old.path)
        endpoint_changes.append((_endpoint_items(before), _endpoint_items(after)))
    for item in sorted(sets):
        yield item.op
    for old_items, new_items in endpoint_changes:
        known = set(old_items)
        for item in new_items:
            if item not in known:
                yield item.op
    for old_items, new_items in reversed(endpoint_changes):
        kept = {one.path for one in new_items}
        for item in reversed(old_items):
            if item.path not in kept:
                yield shared.delete_op(localv1.Set.GlobalEndpointInfos, item.path)
    for path in sorted(gone, reverse=True):
        yield shared.delete_op(localv1.Set.GlobalServiceInfos, path)
    for one in reversed(difference.nodes):
        if one.after is None:
            yield shared.delete_op(localv1.Set.GlobalNodeInfos, f"|{one.name}||")


def _service_item(state: ServiceState | None) -> Item | None:
    if state is None:
        return None
    found = state.memo.get("global")
    if found is None:
        found = state.memo["global"] = cluster.service_item(state.service)
    return cast("Item", found)


def _endpoint_items(state: ServiceState | None) -> tuple[Item, ...]:
    if state is None:
        return ()
    found = state.memo.get("endpoints")
    if found is None:
        found = state.memo["endpoints"] = cluster.endpoint_items(state.service, state.pieces)
    return cast("tuple[Item, ...]", found)


def node_batch(difference: Difference) -> Iterator[bytes]:
    """Messages of the node API; the last one has the Sync. None at all if there is nothing new, except at first."""
    is_first, revision = difference.is_first, difference.revision
    head = nodev1.WatchResponse(reset=is_first)
    is_worth_it = is_first
    own = difference.after.name if difference.after is not None else ""
    for change in difference.nodes:
        if change.name == own and change.after is not None:
            head.node.CopyFrom(node.node_message(change.after))
            is_worth_it = True
    if difference.service_ranges or (difference.service_ranges is not None and not is_first):
        head.service_ranges.SetInParent()
        head.service_ranges.prefixes.extend(str(one) for one in difference.service_ranges)
        is_worth_it = True
    parts: list[bytes] = []
    size = 0
    for number, (key, before, after) in enumerate(difference.services):
        if number % BREATH == BREATH - 1:
            yield BREATHE
        old = _node_item(before, difference.before)
        new = _node_item(after, difference.after)
        if old is new or old == new:
            continue
        is_worth_it = True
        if new is None:
            head.delete.append(f"{key.namespace}/{key.name}")
            continue
        parts.append(new)
        size += len(new)
        if size >= MESSAGE_BYTES:
            yield head.SerializeToString() + b"".join(parts)
            head = nodev1.WatchResponse()
            parts, size = [], 0
    if is_worth_it:
        head.revision, head.sync = revision, True
        yield head.SerializeToString() + b"".join(parts)


def _node_item(state: ServiceState | None, viewpoint: Viewpoint | None) -> bytes | None:
    """A Service as one field of the message; None = there is nothing of it on this node."""
    if state is None or viewpoint is None:
        return None
    if state.is_plain:
        if state.plain is False:
            state.plain = _encoded(state, Viewpoint(""))
        return state.plain
    told_from = state.told_from(viewpoint)
    found = state.memo.get(("node", told_from), state)
    if found is state:
        found = state.memo["node", told_from] = _encoded(state, told_from)
    return cast("bytes | None", found)


def _encoded(state: ServiceState, viewpoint: Viewpoint) -> bytes | None:
    view = state.view(viewpoint)
    if not view:
        return None
    value = node.service_message(state.service.key, view).SerializeToString(deterministic=True)
    return _SET_TAG + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)

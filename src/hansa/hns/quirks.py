"""Defects of HNS by build: what happens, what hansa does, and who has seen it. One table, read by people and docs.

The emulator can show each of them: by a switch of its build (`hns.emulator.builds`) or by a fault
(`hns.emulator.faults`), as `shown_by` says.
"""

from __future__ import annotations

from typing import NamedTuple


class Quirk(NamedTuple):
    """builds: names of emulator builds that have it, () = any. until: the build or update that ends it, "" = none."""

    key: str
    builds: tuple[str, ...]
    happens: str
    answer: str
    evidence: str
    shown_by: str
    until: str = ""


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "modify-does-nothing",
        ("ws2025",),
        "HcnModifyLoadBalancer says S_OK and leaves the back ends as they were",
        "Modify is used from 15.5 on only, and its answer is compared with what was wanted",
        "kubernetes/kubernetes#131466 (HNS 15.4, April 2025)",
        "Build.modify",
        until="HNS 15.5",
    ),
    Quirk(
        "twin-endpoints",
        ("ws2019", "ws2022"),
        "a local and a remote endpoint with one address exist at once",
        "load balancers move to the local one, then the remote one is deleted, in one pass",
        "kube-proxy 1.36 source; kubernetes/kubernetes#130963, #138000",
        "Build.allows_local_remote_twins",
    ),
    Quirk(
        "delete-fails-once",
        ("ws2019",),
        "HcnDeleteLoadBalancer fails now and then; an immediate second try works",
        "one immediate retry of a failed delete, then the ordinary backoff",
        "kube-proxy 1.36 source comment",
        "Build.lb_delete_fails_every",
    ),
    Quirk(
        "partial-load-balancer",
        (),
        "a failed create leaves a load balancer without port mappings",
        "read as a partial object: replaced if its id is ours, never indexed into",
        "kubernetes/kubernetes#141489",
        "faults.LeavePartial",
    ),
    Quirk(
        "restored-after-restart",
        (),
        "after a restart HNS reloads objects from its store, now or later; creating one again says 'already exists'",
        "after every outage everything is read again before anything is written; a conflict means a look, not a loop",
        "kubernetes/kubernetes#139519",
        "Emulator.restart",
    ),
    Quirk(
        "leaked-reservation",
        ("ws2019",),
        "the port of a deleted load balancer stays reserved: creating it again says 'port already exists'",
        "reported as a leaked reservation, retried with growing pauses; Modify is preferred to delete and create",
        "kubernetes/kubernetes PR 137530 (17763.8146)",
        "faults.LeakReservation",
    ),
    Quirk(
        "wildcard-listener",
        ("ws2019",),
        "a process listening on 0.0.0.0:P makes every load balancer with port P on any VIP fail",
        "health-check load balancers only where asked for; hansa's own listeners avoid ports it programs",
        "kubernetes/community#8883",
        "Build.wildcard_listener_blocks_vips",
    ),
    Quirk(
        "source-vip-loop",
        ("ws2019",),
        "with an empty SourceVIP on l2bridge the NAT pool becomes the VIP itself and replies loop",
        "SourceVIP is always sent, the node's address by default",
        "kubernetes/community#8890",
        "Build.empty_source_vip_is_vip",
    ),
    Quirk(
        "host-bits-in-exceptions",
        ("ws2022", "win11", "zn23h2", "ws2025", "future"),
        "an OutBoundNAT exception prefix with host bits is an invalid policy",
        "prefixes are written without host bits",
        "microsoft/hcsshim#1951 (cause inferred)",
        "Build.refuses_exception_host_bits",
    ),
    Quirk(
        "deny-unmatched",
        ("ws2025",),
        "once an endpoint has any ACL, outbound traffic that none matches is denied",
        "whoever writes ACLs adds explicit Allow rules at 65500",
        "microsoft/Windows-Containers#616 (KB5082062, by design)",
        "Build.acl_denies_unmatched",
    ),
    Quirk(
        "port-pool",
        (),
        "every load balancer without DSR takes 64 dynamic ports; with none left, create fails by 0x803B0013 or 0x0E",
        "counted, long pauses, one pass stops after three such answers; DSR needs no ports",
        "Azure/AKS#1375; hcn.md 5.9",
        "Build.pool_exhausted",
    ),
    Quirk(
        "degraded-object",
        (),
        "a load balancer in state 4 or an endpoint in state 5 can be neither changed nor deleted",
        "reported; HNS has to be restarted",
        "microsoft/wcnscripts#21",
        "Emulator.alter(..., state=4)",
    ),
    Quirk(
        "delete-invalid-ip",
        (),
        "with feature key 140377743 on, deleting a load balancer says 'invalid IP' and its rules stay",
        "reported with the key's number; not retried in a loop",
        "notes of an HNS engineer (princepereira/Commands)",
        "Build.lb_delete_says_invalid_ip",
    ),
)

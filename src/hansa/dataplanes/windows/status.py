"""What is not as desired, since when and why; and the sentences that people get about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hansa.dataplanes.base import Verb
from hansa.dataplanes.windows.backoff import Retry
from hansa.dataplanes.windows.compare import (
    AddressPlan,
    FrontendPlan,
)
from hansa.dataplanes.windows.objects import address_order
from hansa.hns.errors import ErrorClass
from hansa.net import Address, IPFamily, family_of
from hansa.rules.model import FrontendKey
from hansa.rules.ruleset import frontend_order
from hansa.wording import named

ALARM_AFTER_S = 10.0  # critical services (DNS, the API) may not be missing for longer (windows-proxy F22)


@dataclass(frozen=True, slots=True)
class Open:
    """since: monotonic time. desired: False for something that should be gone. blocked: nothing can be tried.

    told: somebody should know: it will not come right by itself.
    """

    since: float
    reason: str
    desired: bool
    critical: bool = False
    blocked: bool = False
    told: bool = False
    lacks_source_vip: bool = False


@dataclass(slots=True)
class Status:
    """Open frontends and addresses; backends that wait for the CNI, or are on this node against their node name."""

    frontends: dict[FrontendKey, Open] = field(default_factory=dict)
    addresses: dict[Address, Open] = field(default_factory=dict)
    waiting: dict[FrontendKey, tuple[Address, ...]] = field(default_factory=dict)
    misplaced: dict[FrontendKey, tuple[Address, ...]] = field(default_factory=dict)

    def note_frontend(self, plan: FrontendPlan, retry: Retry | None, now: float) -> None:
        """retry: what HNS said last about it, None if it has not refused."""
        for kept, addresses in ((self.waiting, plan.waiting), (self.misplaced, plan.misplaced)):
            if addresses:
                kept[plan.frontend] = addresses
            else:
                kept.pop(plan.frontend, None)
        if plan.settled:
            self.frontends.pop(plan.frontend, None)
            return
        reason = plan.blocked or plan.why or f"endpoints are missing: {named(plan.missing)}"
        old = self.frontends.get(plan.frontend)
        self.frontends[plan.frontend] = Open(
            old.since if old else now,
            _refusal(retry, unseen=plan.verb is Verb.CREATE) or reason,
            desired=plan.desired is not None,
            critical=plan.desired is not None and plan.desired.critical,
            blocked=bool(plan.blocked),
            told=bool(plan.blocked) or _needs_somebody(retry),
            lacks_source_vip=plan.lacks_source_vip,
        )

    def note_address(self, plan: AddressPlan, retry: Retry | None, now: float) -> None:
        if plan.verb is None and not plan.surplus and not plan.blocked:
            self.addresses.pop(plan.address, None)
            return
        old = self.addresses.get(plan.address)
        desired = plan.desired is not None and (plan.verb is not None or bool(plan.blocked))
        self.addresses[plan.address] = Open(
            old.since if old else now,
            _refusal(retry, unseen=False) or plan.blocked or plan.why,
            desired=desired,
            blocked=bool(plan.blocked),
            told=bool(plan.blocked) or _needs_somebody(retry),
        )

    @property
    def pending(self) -> tuple[str, ...]:
        """Desired objects that are missing or different, as text, sorted."""
        frontends, addresses = self._pending()
        return (*(str(key) for key in frontends), *(f"endpoint {key}" for key in addresses))

    @property
    def pending_by_family(self) -> dict[IPFamily, tuple[str, ...]]:
        """The same by family; families without any are absent."""
        found: dict[IPFamily, list[str]] = {}
        frontends, addresses = self._pending()
        for frontend in frontends:
            found.setdefault(frontend.family, []).append(str(frontend))
        for address in addresses:
            found.setdefault(family_of(address), []).append(f"endpoint {address}")
        return {family: tuple(keys) for family, keys in found.items()}

    def _pending(self) -> tuple[list[FrontendKey], list[Address]]:
        frontends = sorted((key for key, open_ in self.frontends.items() if open_.desired), key=frontend_order)
        addresses = sorted((key for key, open_ in self.addresses.items() if open_.desired), key=address_order)
        return frontends, addresses

    @property
    def lacks_source_vip(self) -> bool:
        return any(open_.lacks_source_vip for open_ in self.frontends.values())

    def conditions(self, now: float) -> Iterator[str]:
        waiting = sorted({address for addresses in self.waiting.values() for address in addresses}, key=address_order)
        if waiting:
            yield f"backends on this node without HNS endpoint, which the CNI makes: {named(waiting)}"
        for key in sorted(self.frontends, key=frontend_order):
            open_ = self.frontends[key]
            if open_.told and open_.desired:
                yield f"{key}: {open_.reason}"
            if open_.critical and now - open_.since > ALARM_AFTER_S:
                # No number that grows: a condition is said when it begins and when it is over, and at no other time.
                yield f"critical: {key} has not been as desired for more than {ALARM_AFTER_S:g} s: {open_.reason}"
        misplaced = {address for addresses in self.misplaced.values() for address in addresses}
        if misplaced:
            yield (
                "HNS has these backends on this node, their EndpointSlice says another node; is the node name right? "
                + named(sorted(misplaced, key=address_order))
            )
        left = [frontend for frontend, open_ in self.frontends.items() if not open_.desired]
        if left:
            yield f"load balancers that should be gone: {named(sorted(left, key=frontend_order))}"
        kept = [address for address, open_ in self.addresses.items() if not open_.desired]
        if kept:
            yield f"endpoints that should be gone: {named(sorted(kept, key=address_order))}"
        for address in sorted(self.addresses, key=address_order):
            if self.addresses[address].told and self.addresses[address].desired:
                yield f"endpoint {address}: {self.addresses[address].reason}"


def _refusal(retry: Retry | None, *, unseen: bool) -> str:
    """HNS's own words. unseen: after another look, nothing that HNS lists holds the place (F43)."""
    if retry is None or not retry.error:
        return ""
    if unseen and retry.error_class is ErrorClass.CONFLICT:
        return (
            f"{retry.error}; nothing that HNS lists holds it: a listener of the host, "
            "a reservation that HNS has leaked, or no free ports"
        )
    return retry.error


def _needs_somebody(retry: Retry | None) -> bool:
    return retry is not None and retry.error_class in (ErrorClass.CONFLICT, ErrorClass.REJECTED)

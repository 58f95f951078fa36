"""Performing steps: the only module that writes to HNS, and the only place where keys meet GUIDs.

Every write is decided anew from memory right before it is made, and memory follows every answer, so a step that an
earlier failure has made pointless, or wrong, does nothing. Evidence: windows-proxy H.4, H.6; invariants I1 to I7.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import suppress
from typing import TypeVar, assert_never

from hansa.dataplanes.base import Verb
from hansa.dataplanes.windows.compare import (
    ENDPOINTS,
    NONE,
    FrontendPlan,
    Situation,
    balancer_differences,
    differ,
    endpoint_differences,
    plan_address,
    plan_frontend,
)
from hansa.dataplanes.windows.objects import DesiredEndpoint, DesiredLoadBalancer
from hansa.dataplanes.windows.observe import Observer, claims_of, raise_if_down
from hansa.dataplanes.windows.ownership import OWNER, Journal, Standing, balancer_guid, endpoint_guid
from hansa.dataplanes.windows.plan import (
    DeleteEndpoint,
    DeleteStray,
    MakeEndpoint,
    ReplaceEndpoint,
    SettleFrontend,
    Step,
)
from hansa.dataplanes.windows.render import balancer_object, endpoint_object
from hansa.errors import DataplaneError
from hansa.hns.api import ZERO_GUID, Guid, HnsError, HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.errors import ErrorClass
from hansa.hns.schema import (
    HnsEndpoint,
    HnsLoadBalancer,
    MalformedHnsObject,
    decode_endpoint,
    decode_load_balancer,
    encode,
)
from hansa.net import Address
from hansa.rules.model import FrontendKey

ALREADY_EXISTS = 0x800700B7
GIVE_UP_AFTER = 3  # answers "exhausted" in one pass, after which no more load balancers without DSR are tried (F44)
_ENDPOINT_PLACE = "endpoint "  # how the journal names the place of an endpoint; others are frontends
T = TypeVar("T", HnsEndpoint, HnsLoadBalancer)


class StepFailed(DataplaneError):
    """A step came to no good end. look: memory may be wrong about what HNS holds. final: the next try would end alike,
    and interrupt what works meanwhile."""

    def __init__(self, error_class: ErrorClass, text: str, *, look: bool = False, final: bool = False) -> None:
        self.error_class = error_class
        self.text = text
        self.look = look
        self.final = final
        super().__init__(text)


class Executor:
    """Performs one step at a time. exhausted: how often HNS had no room for a load balancer, reset by each pass."""

    def __init__(
        self,
        client: HnsClient,
        observer: Observer,
        situation: Situation,
        journal: Journal,
        write_journal: Callable[[], None],
    ) -> None:
        """write_journal: bring the journal's news to where a later process finds them."""
        self._client = client
        self._observer = observer
        self._situation = situation
        self._journal = journal
        self._write_journal = write_journal
        self.exhausted = 0

    def begin(self) -> None:
        """A new pass: what the last one was told about full ports no longer counts."""
        self.exhausted = 0

    def perform(self, step: Step) -> bool:
        """Whether anything was written. Raises StepFailed, and HnsDown if HNS does not answer."""
        before = self._client.calls
        match step:
            case MakeEndpoint():
                self._make_endpoint(step.address)
            case ReplaceEndpoint():
                self._replace_endpoint(step.address)
            case SettleFrontend():
                self._settle(step.frontend)
            case DeleteStray():
                if step.guid in self._situation.observed.placeless:
                    self._delete_balancer(step.guid)
            case DeleteEndpoint():
                self._delete_endpoint(step.address, step.guid)
            case _:
                assert_never(step)
        return self._client.calls > before

    # --- load balancers ---

    def _settle(self, frontend: FrontendKey, *, without: Set[Address] = NONE) -> None:
        """One group: the two calls of a replacement are adjacent."""
        plan = plan_frontend(self._situation, frontend, without=without)
        surplus_first = plan.verb is Verb.REPLACE  # HNS refuses the new one while another holds the frontend
        if surplus_first:
            self._delete_surplus(plan)
        match plan.verb:
            case Verb.CREATE:
                self._create_balancer(plan)
            case Verb.MODIFY:
                self._modify_balancer(plan, without)
            case Verb.REPLACE:
                self._replace_balancer(plan)
            case Verb.DELETE:
                assert plan.guid is not None
                self._delete_balancer(plan.guid)
            case None:
                pass
            case _:
                assert_never(plan.verb)
        if not surplus_first:
            self._delete_surplus(plan)

    def _delete_surplus(self, plan: FrontendPlan) -> None:
        for guid in plan.surplus:
            self._delete_balancer(guid)

    def _replace_balancer(self, plan: FrontendPlan) -> None:
        assert plan.guid is not None
        assert plan.desired is not None
        self._refuse_if_closed(plan)
        # Before the delete: writing to a disk has no place between the two calls.
        self._intend(HnsKind.LOAD_BALANCER, plan.frontend, _document(plan.desired, plan.endpoints))
        self._delete_balancer(plan.guid)
        if plan.frontend in self._situation.renewing:
            # Another GUID: whatever the kernel may still keep under the old one stays out of it.
            generations = self._situation.generations
            generations[plan.frontend] = generations.get(plan.frontend, 0) + 1
        self._create_balancer(plan)

    def _refuse_if_closed(self, plan: FrontendPlan) -> None:
        assert plan.desired is not None
        if self.exhausted >= GIVE_UP_AFTER and not plan.desired.dsr:
            raise StepFailed(ErrorClass.EXHAUSTED, "HNS has run out of ports for load balancers without DSR")

    def _create_balancer(self, plan: FrontendPlan) -> None:
        assert plan.desired is not None
        self._refuse_if_closed(plan)
        frontend = plan.frontend
        self._situation.renewing.discard(frontend)
        asked = balancer_guid(frontend, self._situation.generations.get(frontend, 0))
        document = _document(plan.desired, plan.endpoints)
        made = self._create(HnsKind.LOAD_BALANCER, frontend, asked, document, decode_load_balancer)
        self._note_marks(made.guid == asked or made.owner == OWNER)
        self._situation.observed.put_balancer(made)
        self._note_silence(plan.desired, made)
        differences = balancer_differences(self._situation, plan.desired, made, plan.endpoints)
        if differences:
            raise StepFailed(ErrorClass.REJECTED, f"HNS made it, but {differ(differences)}", final=True)

    def claim(self) -> None:
        """Judge what HNS was asked to make and has not confirmed: the reply may have got lost, this process may have
        been killed before it could note the GUID, or a load balancer without frontend is left (hcn.md 5.10 B3).

        Where HNS keeps neither our GUID nor our Owner, content and place tell that it is what we asked for. To be
        called whenever memory has been brought up to date: then all that is unsure has been judged.
        """
        for place, document in list(self._journal.intents):
            with suppress(MalformedHnsObject):  # a journal may be damaged: that costs a mark, never a wrong write
                if place.startswith(_ENDPOINT_PLACE):
                    self._claim_endpoint(decode_endpoint(document))
                else:
                    self._claim_balancer(decode_load_balancer(document))
            if self._situation.observed.seen_all:
                self._journal.record_settled(place, document)

    def _claim_balancer(self, asked: HnsLoadBalancer) -> None:
        observed = self._situation.observed
        found = [observed.balancers[guid] for guid in sorted(observed.placeless)]
        for frontend in claims_of(asked):
            found.extend(observed.at_frontend(frontend))
        for left in found:
            same = left.frontend_vips == asked.frontend_vips and left.source_vip == asked.source_vip
            if same and not left.owner and frozenset(left.endpoints) == frozenset(asked.endpoints):
                self._journal.record_made(left.guid)

    def _claim_endpoint(self, asked: HnsEndpoint) -> None:
        for address in asked.addresses:
            for found in self._situation.observed.at_address(address):
                same = found.remote and found.addresses == asked.addresses and not found.owner
                if same and found.mac_address == asked.mac_address and found.provider_address == asked.provider_address:
                    self._journal.record_made(found.guid)

    def _modify_balancer(self, plan: FrontendPlan, without: Set[Address]) -> None:
        assert plan.desired is not None
        assert plan.guid is not None
        # The Owner stays whose it was: nothing but the endpoints may change here.
        owner = self._situation.observed.balancers[plan.guid].owner
        document = encode(balancer_object(plan.desired, plan.endpoints, owner))
        try:
            text = self._client.modify(HnsKind.LOAD_BALANCER, plan.guid, document)
            changed = decode_load_balancer(text)
        except HnsError as error:
            if raise_if_down(error) is not ErrorClass.UNSUPPORTED:
                raise self._failed(error) from error
            self._situation.modify = False
            self._settle(plan.frontend, without=without)
            return
        except MalformedHnsObject as error:
            raise StepFailed(ErrorClass.TRANSIENT, str(error), look=True) from error
        self._situation.observed.put_balancer(changed)
        if ENDPOINTS in balancer_differences(self._situation, plan.desired, changed, plan.endpoints):
            self._situation.modify = False  # HNS 15.4 says yes and does nothing (F70)
            self._settle(plan.frontend, without=without)

    def _delete_balancer(self, guid: Guid) -> None:
        self._delete(HnsKind.LOAD_BALANCER, guid)
        self._situation.observed.drop_balancer(guid)

    def _note_silence(self, desired: DesiredLoadBalancer, made: HnsLoadBalancer) -> None:
        """Learn which fields this HNS never tells: asked for, and absent from the answer (windows-proxy H.3)."""
        mapping = made.port_mappings[0] if made.port_mappings else None
        if desired.source_vip is not None and made.source_vip is None:
            self._journal.record_not_echoed("source VIP")
        if desired.lb_flags and not made.flags:
            self._journal.record_not_echoed("flags")
        if mapping is not None and desired.mapping_flags and not mapping.flags:
            self._journal.record_not_echoed("mapping flags")
        if mapping is not None and desired.distribution and not mapping.distribution:
            self._journal.record_not_echoed("distribution")

    # --- endpoints ---

    def _make_endpoint(self, address: Address) -> None:
        plan = plan_address(self._situation, address)
        if plan.verb is not Verb.CREATE:
            return
        assert plan.desired is not None
        self._create_endpoint(plan.desired)

    def _create_endpoint(self, desired: DesiredEndpoint) -> None:
        situation = self._situation
        asked = endpoint_guid(situation.network, desired.address, situation.generations.get(desired.address, 0))
        document = encode(endpoint_object(desired, situation.network, OWNER))
        made = self._create(HnsKind.ENDPOINT, desired.address, asked, document, decode_endpoint)
        self._note_marks(made.guid == asked or made.owner == OWNER)
        situation.observed.put_endpoint(made)
        if not made.mac_address:
            self._journal.record_not_echoed("MAC")
        differences = endpoint_differences(situation, desired, made)
        if differences:
            raise StepFailed(ErrorClass.REJECTED, f"HNS made it, but {differ(differences)}", final=True)

    def _replace_endpoint(self, address: Address) -> None:
        """HNS has no two endpoints with one address and no endpoint goes while it is used: all users move off and back.

        Whatever fails on the way, the load balancers get back what there is.
        """
        situation = self._situation
        plan = plan_address(situation, address)
        if plan.verb is not Verb.REPLACE or plan.guid is None or plan.desired is None:
            return
        users = sorted(situation.observed.references(plan.guid))
        frontends = {claim for guid in users for claim in situation.observed.claims(guid)}
        failure: StepFailed | None = None
        try:
            for guid in users:
                if guid in situation.observed.placeless:  # it would keep the endpoint in use
                    self._delete_balancer(guid)
            for frontend in sorted(frontends, key=str):
                self._settle(frontend, without={address})
            self._delete_endpoint_now(address, plan.guid)
            self._create_endpoint(plan.desired)
        except StepFailed as error:
            failure = error
        for frontend in sorted(frontends | situation.wanted.users(address), key=str):
            try:
                self._settle(frontend)
            except StepFailed as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _delete_endpoint(self, address: Address, guid: Guid) -> None:
        if guid in plan_address(self._situation, address).surplus:
            self._delete_endpoint_now(address, guid)

    def _delete_endpoint_now(self, address: Address, guid: Guid) -> None:
        """Read again right before: an endpoint that has become local is somebody's pod (F48)."""
        observed = self._situation.observed
        users = observed.references(guid)
        if users:
            raise StepFailed(ErrorClass.BUSY, f"load balancer {min(users)} uses it")
        self._observer.read(HnsKind.ENDPOINT, guid)
        endpoint = observed.endpoints.get(guid)
        if endpoint is None:
            return
        standing = self._situation.ownership.of_endpoint(endpoint, self._situation.network)
        if address not in endpoint.addresses or not self._situation.ownership.may_delete_endpoint(standing):
            raise StepFailed(ErrorClass.CONFLICT, "it has changed and is not ours any more")
        self._delete(HnsKind.ENDPOINT, guid)
        observed.drop_endpoint(guid)

    # --- calls ---

    def _create(
        self,
        kind: HnsKind,
        key: FrontendKey | Address,
        asked: Guid,
        document: str,
        decode: Callable[[str], T],
    ) -> T:
        network = self._situation.network if kind is HnsKind.ENDPOINT else None
        place = self._intend(kind, key, document)
        try:
            made = decode(self._client.create(kind, document, guid=asked, network=network))
        except HnsError as error:
            self._journal.record_doubt(place, document)
            failed = self._failed(error)
            if kind is HnsKind.LOAD_BALANCER and failed.error_class is ErrorClass.EXHAUSTED:
                self.exhausted += 1
            if error.hresult == ALREADY_EXISTS:
                generations = self._situation.generations
                generations[key] = generations.get(key, 0) + 1
            raise failed from error
        except MalformedHnsObject as error:
            raise StepFailed(ErrorClass.TRANSIENT, str(error), look=True) from error
        if made.guid == ZERO_GUID:
            raise StepFailed(ErrorClass.TRANSIENT, "HNS made it, but does not tell its GUID", look=True)
        self._journal.record_made(made.guid)
        # Else `claim` has to judge what an earlier try may have left.
        if not self._journal.intents[place, document].in_doubt:
            self._journal.record_settled(place, document)
        return made

    def _intend(self, kind: HnsKind, key: FrontendKey | Address, document: str) -> str:
        """Note what HNS is about to be asked: until its answer is noted, only content tells whose the object is.

        Returns the place under which it is noted.
        """
        place = f"{_ENDPOINT_PLACE}{key}" if kind is HnsKind.ENDPOINT else str(key)
        if (place, document) not in self._journal.intents:
            self._journal.record_intent(place, document, lasting=not self._situation.ownership.marks_kept)
            self._write_journal()
        return place

    def _delete(self, kind: HnsKind, guid: Guid) -> None:
        """One immediate second try: HNS of Server 2019 fails now and then (F05). What is gone needs no deleting.

        It stays in the journal, though: HNS may mean something else that is gone, or bring it back from its store.
        """
        for last in (False, True):
            try:
                self._client.delete(kind, guid)
            except HnsError as error:
                if raise_if_down(error) is ErrorClass.GONE:
                    return
                if last:
                    raise self._failed(error) from error
            else:
                self._journal.record_deleted(guid)
                return

    @staticmethod
    def _failed(error: HnsError) -> StepFailed:
        error_class = raise_if_down(error)
        return StepFailed(error_class, str(error), look=error_class in (ErrorClass.GONE, ErrorClass.CONFLICT))

    def _note_marks(self, kept: bool) -> None:
        if kept:
            self._situation.ownership.marks_kept = True


def _document(desired: DesiredLoadBalancer, endpoints: frozenset[Guid]) -> str:
    return encode(balancer_object(desired, endpoints, OWNER))


def is_ours(situation: Situation, guid: Guid) -> bool:
    """Whether verification should look at the object: what we made or took over."""
    balancer = situation.observed.balancers.get(guid)
    if balancer is not None:
        claims = situation.observed.claims(guid)
        wanted = any(claim in situation.wanted.balancers for claim in claims)
        return wanted or situation.ownership.of_balancer(balancer, claims) is Standing.OURS
    endpoint = situation.observed.endpoints.get(guid)
    return endpoint is not None and endpoint.remote

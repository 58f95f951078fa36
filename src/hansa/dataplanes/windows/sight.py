"""What can be seen of the host: whether HNS answers, which network it is, and when to look again.

Evidence: windows-proxy H.6 (unavailable), H.7 (what is read when), F09 and F21 (what must not be concluded).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from hansa.dataplanes.windows.observe import HnsDown, NoNetwork, Observed, Observer, raise_if_down
from hansa.errors import DataplaneError
from hansa.hns.api import Guid, HnsError, HnsVersion
from hansa.hns.client import HnsClient

FIRST_PROBE_S, LONGEST_PROBE_S = 0.5, 10.0  # while HNS is down: one cheap call at growing intervals (H.6)
SEEN_TWICE_S = 2.0  # a network is lost only if a healthy HNS says so twice, this far apart (F21)
READ_AGAIN_S = 1.0  # after HNS has refused to be read


class Looked(enum.Enum):
    """How far memory now agrees with HNS."""

    NOTHING = "what was seen before still counts"
    PRESENCE = "new and vanished objects are known"
    EVERYTHING = "every object was read"


@dataclass(slots=True)
class _Outage:
    error: str
    probe_at: float
    pause_s: float = FIRST_PROBE_S


class Sight:
    """Looks at the host when it has to, and remembers why it could not. `text`: that reason, "" = all is in sight."""

    def __init__(self, client: HnsClient, observer: Observer, observed: Observed, network_name: str) -> None:
        self._client = client
        self._observer = observer
        self._observed = observed
        self._network_name = network_name
        self._outage: _Outage | None = None
        self._needs_deep = True
        self._look_at: float | None = None
        self._missing_since: float | None = None
        self.version: HnsVersion | None = None
        self.text = ""

    @property
    def clear(self) -> bool:
        """Whether there is a network whose objects have been read."""
        return not self._needs_deep and self._observed.network is not None

    @property
    def down(self) -> bool:
        return self._outage is not None

    @property
    def next_at(self) -> float | None:
        """Monotonic time of the next look or probe that is not an audit, None = none is needed."""
        return self._look_at if self._outage is None else self._outage.probe_at

    def is_due(self, now: float) -> bool:
        return self._needs_deep if self._look_at is None else now >= self._look_at

    def went_down(self, error: HnsDown, now: float) -> None:
        self._outage = _Outage(str(error), now + FIRST_PROBE_S)
        self.text = f"HNS does not answer: {error}"

    def came_back(self, now: float) -> bool:
        """Whether a HNS that was down answers again: one cheap call, if it is due. Then all is to be read anew."""
        outage = self._outage
        if outage is None or now < outage.probe_at:
            return False
        try:
            self._observer.probe()
        except HnsDown:
            outage.pause_s = min(outage.pause_s * 2, LONGEST_PROBE_S)
            outage.probe_at = now + outage.pause_s
            return False
        except DataplaneError:
            pass  # it answers, if only to refuse: the reading that follows says why
        self._outage = None
        self._needs_deep = True
        self._look_at = None
        self.text = ""
        return True

    def look(self, now: float) -> Looked:
        """Bring memory up to date. If HNS refuses to be read, the last reading stays and nothing is concluded.

        Raises HnsDown.
        """
        self.text = ""
        self._look_at = None
        try:
            if self.version is None:
                self.version = self._read_version()
            if not self._find_network(now):
                return Looked.NOTHING
            if self._needs_deep:
                self._observer.read_all()
                self._needs_deep = False
                return Looked.EVERYTHING
            self._observer.check_presence()
        except HnsDown:
            raise
        except DataplaneError as error:
            self.text = f"HNS cannot be read: {error}"
            self._look_at = now + READ_AGAIN_S
            return Looked.NOTHING
        return Looked.PRESENCE

    def verify(self, count: int, is_ours: Callable[[Guid], bool]) -> None:
        """Read some of our objects again. Raises HnsDown."""
        self._observer.verify(count, is_ours)

    def _read_version(self) -> HnsVersion:
        try:
            return self._client.version()
        except HnsError as error:
            raise_if_down(error)
            raise

    def _find_network(self, now: float) -> bool:
        """Whether the network can be read further."""
        known = self._observed.network
        found = self._observer.find_network(self._network_name or (known.name if known else ""))
        if isinstance(found, NoNetwork):
            self.text = found.text
            self._look_at = now + SEEN_TWICE_S
            if self._missing_since is None:
                self._missing_since = now
            elif known is not None and now - self._missing_since >= SEEN_TWICE_S:
                self._observed.network = None
                self._needs_deep = True
            return False
        self._missing_since = None
        if known is None or found.guid != known.guid:
            self._observed.forget_endpoints()
            self._needs_deep = True
        self._observed.network = found
        return True

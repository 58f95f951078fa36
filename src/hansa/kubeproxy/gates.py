"""Feature gates of Kubernetes: which of them mean something to a service proxy, and what may be asked of them.

Evidence: operations.md section 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hansa.kubeproxy.keys import FALSE, TRUE

ALL_ALPHA, ALL_BETA = "AllAlpha", "AllBeta"
ALLOW_SERVICE_EXTERNAL_IPS = "AllowServiceExternalIPs"
LOGGING_ALPHA, LOGGING_BETA = "LoggingAlphaOptions", "LoggingBetaOptions"


@dataclass(frozen=True, slots=True)
class Gate:
    """stage: ALPHA, BETA or "" for general availability. locked: only its default may be set. effect: "" = none."""

    name: str
    stage: str
    default: bool
    locked: bool = False
    effect: str = ""


GATES: Mapping[str, Gate] = {
    one.name: one
    for one in (
        Gate(ALLOW_SERVICE_EXTERNAL_IPS, "", True, effect="false: spec.externalIPs of Services is ignored"),
        Gate("PreferSameTrafficDistribution", "", True, locked=True),
        Gate("MultiCIDRServiceAllocator", "", True, locked=True),
        Gate("WinDSR", "", True, locked=True),
        Gate("WinOverlay", "", True, locked=True),
        Gate("ComponentStatusz", "BETA", True),
        Gate("ComponentFlagz", "BETA", True),
        Gate("WatchListClient", "BETA", True, effect="false: first lists come in pages, not as a stream"),
        Gate("ContextualLogging", "BETA", True),
        Gate(LOGGING_BETA, "BETA", True, effect="false: no JSON logs"),
        Gate(LOGGING_ALPHA, "ALPHA", False, effect="true: split streams and buffers of logs may be asked for"),
        Gate("NativeHistograms", "ALPHA", False),
        Gate(ALL_ALPHA, "ALPHA", False, effect="all alpha gates at once"),
        Gate(ALL_BETA, "BETA", False, effect="all beta gates at once"),
    )
}


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of the gates that were asked for.

    enabled: every known gate. faults: by gate. warnings, infos: sentences.
    """

    enabled: Mapping[str, bool]
    faults: Mapping[str, str]
    warnings: tuple[str, ...]
    infos: tuple[str, ...]


def parse_gates(text: str) -> dict[str, bool]:
    """`A=true,B=false` as a mapping. Raises ValueError."""
    found: dict[str, bool] = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        name, equals, word = (part.strip() for part in pair.partition("="))
        if not equals:
            raise ValueError("malformed pair, expect string=bool")
        if word not in TRUE | FALSE:
            raise ValueError(f"invalid value of {name}: {word}, expect true or false")
        found[name] = word in TRUE
    return found


def judge(asked: Mapping[str, bool]) -> Judged:
    """Gates that nobody knows are warned of and passed over, which start scripts rely on."""
    enabled = {gate.name: gate.default for gate in GATES.values()}
    for bulk, stage in ((ALL_ALPHA, "ALPHA"), (ALL_BETA, "BETA")):
        if bulk in asked:
            enabled |= {gate.name: asked[bulk] for gate in GATES.values() if gate.stage == stage}
    faults: dict[str, str] = {}
    warnings: list[str] = []
    infos: list[str] = []
    for name, on in sorted(asked.items()):
        gate = GATES.get(name)
        if gate is None:
            warnings.append(f"unrecognized feature gate: {name}")
        elif gate.locked and on is not gate.default:
            locked = str(gate.default).lower()
            faults[name] = f"cannot set feature gate {name} to {str(on).lower()}, feature is locked to {locked}"
        else:
            enabled[name] = on
            if gate.locked:
                infos.append(
                    f"Setting GA feature gate {name}={str(on).lower()}. It will be removed in a future release."
                )
    return Judged(enabled, faults, tuple(warnings), tuple(infos))

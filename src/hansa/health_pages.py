"""The pages of the metrics port that say what this process is: /flagz, /statusz, /healthz. Pure.

Evidence: operations.md 10.2; Kubernetes' component zpages of 1.36.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from hansa.health_answers import Answer, Moment, plain, rfc3339
from hansa.kubeproxy.configuration import KUBERNETES_VERSION
from hansa.meter import FeatureGate

WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is "
    "for debugging purposes only."
)
GROUP, CURRENT, OLD = "config.k8s.io", "v1beta1", "v1alpha1"
# What kube-proxy names; what else there is, is hansa's own.
PATHS = ("/configz", "/flagz", "/healthz", "/metrics", "/proxyMode")
_MEDIA = {"application/json": "json", "application/yaml": "yaml"}
_NOSNIFF = {"X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What the command line has to tell on the metrics port.

    program: `kube-proxy` for whoever asks in its words. flags: as they were settled, by name without dashes.
    configuration: the KubeProxyConfiguration as it was given and completed, None = made of the settings in force.
    profiling: whether profiles may be taken and the verbosity be changed.
    """

    program: str = "hansa"
    flags: Mapping[str, str] = field(default_factory=dict)
    gates: tuple[FeatureGate, ...] = ()
    configuration: Mapping[str, Any] | None = None
    profiling: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What an Accept header asks for. form: text, json or yaml. version: of the document, "" with text."""

    form: str
    version: str = ""


def flagz(shown: Shown, accept: str) -> Answer:
    """Flags and their values; the separator is one of those that kube-proxy draws from."""
    asked = negotiate(accept, "Flagz")
    if asked is None:
        return not_acceptable("Flagz")
    if asked.form == "text":
        lines = "".join(f"{name}={value}\n" for name, value in sorted(shown.flags.items()))
        return plain(f"\n{shown.program} flagz\n{WARNING}\n\n{lines}")
    body = {**_head("Flagz", asked, shown), "flags": dict(sorted(shown.flags.items()))}
    return _structured("Flagz", asked, body)


def statusz(shown: Shown, accept: str, moment: Moment, *, started_at: float, python: str) -> Answer:
    """started_at: seconds since the epoch. python: its version, which stands where kube-proxy tells Go's."""
    asked = negotiate(accept, "Statusz")
    if asked is None:
        return not_acceptable("Statusz")
    version = ".".join(KUBERNETES_VERSION.removeprefix("v").split(".")[:2])
    up_s = max(0, int(moment.wall - started_at))
    if asked.form == "text":
        started = datetime.fromtimestamp(int(started_at), UTC)
        rows = {
            "Started": f"{started:%a %b} {started.day:2} {started:%H:%M:%S UTC %Y}",
            "Up": f"{up_s // 3600} hr {up_s // 60 % 60:02} min {up_s % 60:02} sec",
            "Go version": f"python{python}",
            "Binary version": version,
            "Emulation version": version,
            "Paths": " ".join(PATHS),
        }
        lines = "".join(f"{name}: {value}\n" for name, value in rows.items())
        return plain(f"\n{shown.program} statusz\n{WARNING}\n\n{lines}")
    body = {
        **_head("Statusz", asked, shown),
        "startTime": rfc3339(int(started_at)),
        "uptimeSeconds": up_s,
        "goVersion": f"python{python}",
        "binaryVersion": version,
        "emulationVersion": version,
        "paths": list(PATHS),
    }
    return _structured("Statusz", asked, body)


def negotiate(accept: str, kind: str) -> Asked | None:
    """The first form of the header that there is, by its preference; None = none of them. No header: text.

    >>> negotiate("application/json;g=config.k8s.io;v=v1beta1;as=Statusz", "Statusz")
    Asked(form='json', version='v1beta1')
    >>> negotiate("application/json", "Statusz"), negotiate("text/html, */*;q=0.1", "Statusz").form
    (None, 'text')
    """
    wanted = [_clause(part) for part in accept.split(",") if part.strip()]
    if not wanted:
        return Asked("text")
    for media, parameters, _ in sorted(wanted, key=lambda one: -one[2]):
        if media in ("text/plain", "text/*", "*/*") and parameters.keys() <= {"charset"}:
            return Asked("text")
        version = parameters.get("v", "")
        fits = parameters.get("g") == GROUP and parameters.get("as") == kind and version in (CURRENT, OLD)
        if media in _MEDIA and fits:
            return Asked(_MEDIA[media], version)
    return None


def _clause(text: str) -> tuple[str, dict[str, str], float]:
    """Media type, parameters without q, and q."""
    media, *rest = (part.strip() for part in text.split(";"))
    pairs = (one.partition("=") for one in rest)
    parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = 0.0
    return media.lower(), parameters, quality


def not_acceptable(kind: str) -> Answer:
    media = ", ".join(
        ["text/plain", *(f"{one};g={GROUP};v={CURRENT};as={kind}" for one in ("application/json", "application/yaml"))]
    )
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"only the following media types are accepted: {media}",
        "reason": "NotAcceptable",
        "code": 406,
    }
    return Answer(406, json.dumps(status, separators=(",", ":")), {"Content-Type": "application/json", **_NOSNIFF})


def _head(kind: str, asked: Asked, shown: Shown) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": f"{GROUP}/{asked.version}", "metadata": {"name": shown.program}}


def _structured(kind: str, asked: Asked, body: Mapping[str, Any]) -> Answer:
    headers = {"Content-Type": f"application/{asked.form}", **_NOSNIFF}
    if asked.version == OLD:
        headers["Warning"] = f'299 - "{GROUP}/{OLD} {kind} is deprecated, use {GROUP}/{CURRENT} {kind}"'
    if asked.form == "yaml":
        return Answer(200, yaml.safe_dump(dict(body), sort_keys=False), headers)
    return Answer(200, json.dumps(body, separators=(",", ":")), headers)


def process_healthz(*, verbose: bool, exclude: Iterable[str] = ()) -> Answer:
    """The metrics port's /healthz, whose only check is that there is an answer.

    >>> print(process_healthz(verbose=True, exclude=["x"]).body, end="")
    [+]ping ok
    warn: some health checks cannot be excluded: no matches for "x"
    healthz check passed
    """
    if not verbose:
        return plain("ok")
    excluded = set(exclude)
    lines = ["[+]ping excluded: ok" if "ping" in excluded else "[+]ping ok"]
    if unknown := ", ".join(f'"{name}"' for name in sorted(excluded - {"ping"})):
        lines.append(f"warn: some health checks cannot be excluded: no matches for {unknown}")
    return plain("\n".join((*lines, "healthz check passed", "")))

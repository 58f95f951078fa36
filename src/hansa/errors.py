"""The exception tree. The class says who must act.

    HansaError
    ├── ConfigError        the operator: contradicting or unreadable configuration; `faults` lists all of it at once
    ├── MalformedObject    whoever wrote the Kubernetes object; `faults` names every bad field
    ├── SourceError        nobody yet: the API or a file cannot be read now; hansa retries
    └── DataplaneError     the host: a kernel or HNS refused or is away
        └── HnsError       (hansa.hns.api) with HRESULT and HNS's own words

Anything else that is raised is a bug in hansa and is not caught to be hidden.
"""

from __future__ import annotations

from dataclasses import dataclass


class HansaError(Exception):
    """Base of all errors that hansa raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one field: path as kubectl users write it (`spec.ports[0].port`), text, remedy if any."""

    field: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        tail = f" ({self.remedy})" if self.remedy else ""
        return f"{self.field}: {self.text}{tail}"


class ConfigError(HansaError):
    """The configuration contradicts itself or cannot be read. Raised before anything is written to a host."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(str(fault) for fault in faults))


class MalformedObject(HansaError):
    """An object that cannot be used at all. `subject` is like `Service default/web`."""

    def __init__(self, subject: str, faults: tuple[Fault, ...]) -> None:
        self.subject = subject
        self.faults = faults
        super().__init__(f"{subject}: " + "; ".join(str(fault) for fault in faults))


class SourceError(HansaError):
    """A source of objects cannot be read at the moment; the caller tries again."""


class DataplaneError(HansaError):
    """The host refused or could not be reached."""

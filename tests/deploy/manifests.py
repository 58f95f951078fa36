"""What is shipped in deploy/, as Kubernetes would read it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from tests.api_server import Access

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = ("linux.yaml", "linux-least-privilege.yaml", "windows.yaml")

Document = dict[str, Any]


def documents(file: str) -> list[Document]:
    return [each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text(encoding="utf-8")) if each]


def of_kind(kind: str, found: Iterable[Document]) -> Document:
    (one,) = [each for each in found if each["kind"] == kind]
    return one


def permissions(found: Iterable[Document]) -> frozenset[Access]:
    """Everything that the ClusterRole allows, one by one."""
    return frozenset(
        Access(verb, group, resource)
        for rule in of_kind("ClusterRole", found)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def pod(found: Iterable[Document]) -> Document:
    spec: Document = of_kind("DaemonSet", found)["spec"]["template"]["spec"]
    return spec

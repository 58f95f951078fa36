#!/usr/bin/env python3
"""Write deploy/kubernetes/*.yaml out of the chart, with Helm's own engine: for those who apply files and have no Helm.

tools/render_chart.py [FOLDER]      FOLDER instead of deploy/kubernetes
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "hansa"
FOLDER = ROOT / "deploy" / "kubernetes"

API_SERVER = "https://control-plane.example:6443"  # to be replaced by whoever applies the file
Values = dict[str, Any]
VARIANTS: dict[str, tuple[str, Values]] = {
    "linux.yaml": ("hansa on Linux nodes", {"windows": {"enabled": False}}),
    "linux-least-privilege.yaml": (
        "hansa on Linux nodes; what stays running has CAP_NET_ADMIN alone",
        {"linux": {"privileged": False}, "windows": {"enabled": False}},
    ),
    "windows.yaml": ("hansa on Windows nodes", {"linux": {"enabled": False}}),
}
TEMPLATES = ("account.yaml", "config.yaml", "linux.yaml", "windows.yaml")


def render(values: Values, *, name: str = "hansa", namespace: str = "kube-system") -> list[str]:
    """What Helm would send to a cluster, one text for each template that is not empty."""
    from helm_python import Chart

    with Chart.load(str(CHART)) as chart:
        made = chart.render(values, name=name, namespace=namespace)
    texts = (made.get(f"hansa/templates/{template}", "").strip().removeprefix("---") for template in TEMPLATES)
    return [text.strip() + "\n" for text in texts if text.strip()]


def manifests() -> dict[str, str]:
    """The files by name."""
    found = {}
    for name, (about, values) in VARIANTS.items():
        head = (
            f"# {about}. Made from deploy/helm/hansa by `make manifests`.\n"
            f"# Before you apply it: put the address of your control plane in place of {API_SERVER}, and\n"
            "# images that your nodes can pull in place of hansa. It runs on nodes labelled service-proxy=hansa.\n"
        )
        found[name] = "---\n".join([head, *render({"apiServer": API_SERVER, **values})])
    return found


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in manifests().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main(sys.argv[1:])

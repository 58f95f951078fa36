"""Tables of the reference, made from the code that they describe.

A page holds `<!-- table NAME -->` ... `<!-- end -->`; what lies between is written here and compared by a test, so it
cannot go stale. `HANSA_UPDATE_DOCS=1 pytest -n 0 tests/docs` rewrites it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import typer
from tests.docs import parity
from tests.docs.pages import MARK
from tests.docs.pictures import PICTURES
from typer.core import TyperArgument, TyperGroup, TyperOption

import hansa
from hansa import cli, config, metrics
from hansa.cli.app import app
from hansa.dataplanes.windows.backoff import PACES
from hansa.dataplanes.windows.execute import GIVE_UP_AFTER
from hansa.dataplanes.windows.sight import FIRST_PROBE_S, LONGEST_PROBE_S
from hansa.explain.defects import DEFECTS
from hansa.hns.emulator.builds import BUILDS, SWITCHES, Build
from hansa.hns.emulator.refusals import RULES
from hansa.hns.errors import KNOWN_RESULTS, ErrorClass, KnownResult
from hansa.hns.features import Feature, needed, supports
from hansa.hns.quirks import QUIRKS
from hansa.hns.schema1 import CONVERSIONS
from hansa.kubeproxy import flags, gates, keys, settle


def filled(text: str) -> str:
    """The page with every table as the code has it now."""
    return MARK.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[4]}", text)


# --- commands ---


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words that one types."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(command, TyperGroup):
            yield name, command
            return
        for word, inner in command.commands.items():
            yield from walk(f"{name} {word}", inner)

    yield from walk("hansa", typer.main.get_command(app))


def command_sections() -> str:
    return "\n".join(_command_section(name, command) for name, command in commands())


def _command_section(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    paragraphs = (command.help or "").split("\n\n")
    text = "\n\n".join(" ".join(line.strip() for line in each.splitlines()) for each in paragraphs)
    rows = [_parameter_row(each, context) for each in command.params]
    table = _table(("option", "default", "meaning"), rows)
    return f"## {name}\n\n{text}\n\n```text\n{name} {usage}\n```\n\n{table}"


_TYPES = {"str": "TEXT", "path": "FILE", "list[str]": "TEXT", "float range": "NUMBER", "int range": "COUNT"}


def _parameter_row(parameter: TyperOption | TyperArgument, context: typer.Context) -> tuple[str, str, str]:
    text = parameter.help or ""
    if isinstance(parameter, TyperArgument):
        return f"`{(parameter.name or '').upper()}`", "", text
    names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
    if not parameter.is_flag:
        names += f" {_TYPES[str(parameter.get_help_record(context)[0]).partition('<')[2].rstrip('>')]}"
    if parameter.required:
        return names, "must be given", text
    return names, "" if parameter.is_flag or not parameter.default else f"`{parameter.default}`", text


def exit_codes() -> str:
    return _table(("code", "meaning"), [(str(code), text) for code, text in cli.EXIT_CODES.items()])


# --- settings ---

# Where the field of Config has another name than the setting.
_FIELDS = {
    "bindAddress": "bind_addresses",
    "clusterCIDR": "cluster_cidrs",
    "detectLocal.bridgeInterface": "bridge_interface",
    "detectLocal.interfaceNamePrefix": "interface_name_prefix",
    "featureGates.AllowServiceExternalIPs": "allow_external_ips",
    "winkernel.rootHnsEndpointName": "root_endpoint_name",
    "winkernel.enableDSR": "enable_dsr",
    "criticalServices": "critical",
    "conntrack.min": "min_entries",
}
# Keys that KubeProxyConfiguration does not have.
OWN = frozenset(one.path for one in config.OWN_SETTINGS)


def settings(*, own: bool) -> str:
    rows = [
        (f"`{one.path}`", one.form, _default_of(one.path), one.meaning)
        for one in config.SETTINGS
        if (one.path in OWN) is own
    ]
    return _table(("setting", "form", "default", "meaning"), rows)


def ignored_settings() -> str:
    return _table(("setting", "why"), [(f"`{path}`", why) for path, why in sorted(config._IGNORED.items())])


def _default_of(path: str) -> str:
    """What counts when the setting is not given; "" where that depends on something else, as the meaning says."""
    if path == "hostnameOverride" or path == "mode" or path.startswith(("iptables.", "nftables.")):
        return ""
    default = config.make_config({}, node_name="n")
    names = _FIELDS.get(path) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.rpartition(".")[2]).lower()
    for holder in (default, default.windows, default.linux):
        known = {each.name for each in fields(holder)}
        for name in (names, f"{names}_s"):
            if name in known:
                return _shown(getattr(holder, name), is_time=name.endswith("_s"))
    raise AssertionError(f"the default of {path} is not found: name its field in _FIELDS")


def _shown(value: object, *, is_time: bool) -> str:
    match value:
        case bool():
            return str(value).lower()
        case None | "" | ():
            return ""
        case tuple():
            return ", ".join(str(each) for each in value)
        case config.DetectLocalMode():
            return value.value
        case config.NodePortAddresses(primary=True):
            return "[primary]"
        case float() if is_time:
            return f"{value:g}s"
    return str(value)


# --- kube-proxy ---


def proxy_flags(*origins: flags.Origin) -> str:
    rows = [
        (
            f"`--{one.name}`" + (f", `-{one.short}`" if one.short else ""),
            one.type.value,
            f"`{one.default}`" if one.default not in ("", "[]") else "",
            f"`{one.key}`" if one.key else "",
            _effect(one.meaning, one.planes, one.why) + (" *deprecated*" if one.deprecated else ""),
        )
        for one in flags.FLAGS
        if one.origin in origins
    ]
    return _table(("flag", "type", "default", "key", "meaning"), rows)


def proxy_gone_flags() -> str:
    rows = [(f"`--{one.name}`", one.why) for one in flags.FLAGS if one.origin is flags.Origin.GONE]
    return _table(("flag", "why it does nothing"), rows)


def proxy_keys() -> str:
    rows = [
        (f"`{one.path}`", one.form or one.type.value, _key_default(one), _effect(one.meaning, one.planes, one.why))
        for one in keys.KEYS
    ]
    return _table(("key", "form", "default", "meaning"), rows)


def proxy_gates() -> str:
    rows = [
        (
            f"`{one.name}`",
            one.stage or "GA",
            f"{str(one.default).lower()}{', locked' if one.locked else ''}",
            one.effect or "none in hansa",
        )
        for one in gates.GATES.values()
    ]
    return _table(("gate", "stage", "default", "effect"), rows)


def proxy_live() -> str:
    return ", ".join(f"`{name}`" for name in sorted(settle.LIVE_KEYS)) + "\n"


def _effect(meaning: str, planes: frozenset[str], why: str) -> str:
    if not planes:
        return f"no effect: {why}"
    only = "" if planes == keys.BOTH else "Linux: " if planes == keys.LINUX_ONLY else "Windows: "
    return f"{only}{meaning}"


def _key_default(key: keys.Key) -> str:
    found = {"healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249"}.get(key.path, key.default)
    match found:
        case bool():
            return f"`{str(found).lower()}`"
        case "" | () | {}:
            return ""
        case float():
            return f"`{found:g}`"
    return f"`{found}`"


# --- metrics ---


def metrics_table(*, own: bool) -> str:
    rows = [
        (
            f"`{one.name}`",
            one.type.value,
            ", ".join(f"`{label}`" for label in one.labels),
            one.unit,
            one.help.removeprefix(f"[{one.stability}] "),
        )
        for one in metrics.METRICS
        if one.is_own is own
    ]
    return _table(("metric", "type", "labels", "unit", "meaning"), rows)


def absent_metrics() -> str:
    rows = [(", ".join(f"`{one}`" for one in names.split(", ")), why) for names, why in metrics.NOT_SERVED.items()]
    return _table(("metric of kube-proxy", "why not"), rows)


# --- HNS ---


def error_classes() -> str:
    rows = []
    for one in ErrorClass:
        pace = PACES[one]
        spread = f", ±{pace.jitter:.0%}" if pace.jitter else ""
        pauses = f"{pace.first_s:g} s, doubled up to {pace.longest_s:g} s{spread}"
        rows.append((f"`{one.value}`", _REACTIONS[one], pauses))
    return _table(("class", "what hansa does", "pauses between tries"), rows)


_REACTIONS: dict[ErrorClass, str] = {
    ErrorClass.GONE: "looks at HNS again and plans again, in the same pass; believed only while HNS answers",
    ErrorClass.TRANSIENT: "tries this one object again later; all others go on",
    ErrorClass.REJECTED: "reports it with HNS's words and tries again slowly: the same document is likely "
    "to be refused again; at once if what is wanted, or the host, changes",
    ErrorClass.CONFLICT: "looks who holds the place: adopts or replaces what is its own, reports what is another's",
    ErrorClass.UNAVAILABLE: "ends the pass, concludes nothing about any object, asks by one cheap call "
    f"({FIRST_PROBE_S:g} s, doubled up to {LONGEST_PROBE_S:g} s), then reads everything anew",
    ErrorClass.BUSY: "tries again later: the load balancers that name the object have to let go first",
    ErrorClass.UNSUPPORTED: "remembers it and goes the other way in the same pass: replace instead of modify",
    ErrorClass.EXHAUSTED: f"after {GIVE_UP_AFTER} such answers makes no more load balancers without DSR in this pass "
    "and raises a condition; deletes go on",
}


def error_codes(*, compute: bool) -> str:
    rows = [
        (f"`0x{code:08X}`", known.name, known.meaning, known.error_class.value, _known_from(known))
        for code, known in sorted(KNOWN_RESULTS.items(), key=lambda item: item[0])
        if known.name.startswith("HCS_E_") is compute
    ]
    if compute:
        return ", ".join(f"`{row[0][1:-1]}` {row[1]}" for row in rows) + "\n"
    return _table(("code", "name", "meaning", "class", "class known from"), rows)


def _known_from(known: KnownResult) -> str:
    return public(known.evidence)


def features() -> str:
    rows = [
        (one.value.name, f"HNS {needed(one)}", _having(one), public(one.value.evidence.partition("; ")[2]))
        for one in Feature
    ]
    return _table(("feature", "version of HNS", "emulated builds that have it", "remark"), rows)


def _having(feature: Feature) -> str:
    names = [build.name for build in BUILDS.values() if supports(build.version, feature)]
    return "all" if len(names) == len(BUILDS) else ", ".join(names) or "none"


def quirks() -> str:
    rows = [
        (
            f"`{one.key}`",
            ", ".join(one.builds) or "any",
            one.happens,
            one.answer,
            one.until or "not known",
            public(one.evidence),
            f"`{one.shown_by}`",
        )
        for one in QUIRKS
    ]
    return _table(("quirk", "builds", "what happens", "what hansa does", "ends with", "seen in", "shown by"), rows)


def builds() -> str:
    rows = [
        (f"`{one.name}`", one.windows, str(one.version), one.grade.value, public(one.evidence), _switched(one))
        for one in BUILDS.values()
    ]
    return _table(("build", "Windows", "HNS", "grade", "version known from", "switches that are not as usual"), rows)


def _switched(build: Build) -> str:
    usual = Build(
        name=build.name,
        windows=build.windows,
        version=build.version,
        grade=build.grade,
        evidence=build.evidence,
        modify=build.modify,
    )
    names = [name for name in SWITCHES if name == "modify" or getattr(build, name) != getattr(usual, name)]
    return ", ".join(f"`{name}`: {_value(getattr(build, name))}" for name in names)


def _value(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case frozenset():
            return ", ".join(str(each) for each in sorted(value))
        case int() if value > 0xFFFF:
            return f"0x{value:08X}"
    return str(getattr(value, "value", value))


def switches() -> str:
    usual = next(iter(BUILDS.values()))
    by_name = {each.name: each.default for each in fields(usual)}
    rows = []
    for name, one in SWITCHES.items():
        shown = "given by each build" if name == "modify" else _value(by_name[name])
        rows.append((f"`{name}`", one.meaning, shown, one.grade.value, public(one.evidence)))
    return _table(("switch", "meaning", "usually", "grade", "known from"), rows)


def refusals() -> str:
    rows = []
    for name, rule in RULES.items():
        known = KNOWN_RESULTS.get(rule.hresult)
        code = f"`0x{rule.hresult:08X}`" + (f" {known.name}" if known else "")
        rows.append((f"`{name}`", rule.calls, rule.condition, code, rule.grade.value, public(rule.evidence)))
    return _table(("rule", "calls", "refused when", "answer", "grade", "known from"), rows)


# --- listings and findings ---


def dump_fields() -> str:
    rows = [(str(one.kind), f"`{one.old}`", f"`{one.new}`", one.evidence) for one in CONVERSIONS]
    return _table(("object", "schema 1", "schema 2", "known from"), rows)


def symptoms() -> str:
    rows = [
        (
            f"`{symptom.value}`",
            defect.severity.value,
            defect.known_as,
            defect.meaning,
            ", ".join(defect.issues),
            defect.remedy,
        )
        for symptom, defect in DEFECTS.items()
    ]
    return _table(("symptom", "severity", "known as", "what it means", "upstream", "by hand"), rows)


# --- what holds where ---


def parity_table() -> str:
    rows = [
        (name, str(area.total), _share(area.nftables, area.total), _share(area.windows, area.total), _reasons(area.why))
        for name, area in parity.areas().items()
    ]
    return _table(("scenarios about", "number", "Linux (nftables)", "Windows (HNS)", "what HNS cannot do"), rows)


def _share(holds: int, total: int) -> str:
    return "all" if holds == total else f"{holds} of {total}"


def _reasons(why: Mapping[str, int]) -> str:
    return "; ".join(f"{text} ({count})" for text, count in sorted(why.items()))


def parity_missing() -> str:
    rows = [(f"`{case.name}`", case.about, "; ".join(sorted(lacking))) for case, lacking in parity.not_in_windows()]
    return _table(("case", "what it is about", "what HNS cannot do"), rows)


# --- shared ---

# Labels of lines in the notes that the code was built from: they mean something in a docstring, not to a reader here.
_NOTES = re.compile(
    r"\s*\(?(?:hcn\.md|windows-proxy|service-semantics|operations\.md)(?:,? (?:and )?[A-Z]?\.?\d[\w.]*)*\)?:?"
)


def public(evidence: str) -> str:
    """Evidence as a reader can follow it: public trackers, documents and sources; "" if there is only a note."""
    parts = (_NOTES.sub("", part).strip(" ;,") for part in evidence.split(";"))
    told = (f"reports from the field: {part[4:]}" if part.startswith("has ") else part for part in parts)
    return "; ".join(part for part in told if re.search("[a-z]{3}", part))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (heads, ["---"] * len(heads), *rows)
    cells = ([re.sub(r"(?<!\\)\|", r"\|", cell.strip()) for cell in line] for line in lines)
    return "".join(f"|{''.join(f' {cell} |' if cell else ' |' for cell in line)}\n" for line in cells)


def public_names() -> str:
    """What `from hansa import ...` gives, with the first sentence of each docstring."""
    rows = [
        (
            f"`{name}`",
            f"`{_home(name)}`",
            (inspect.getdoc(getattr(hansa, name)) or "").split("\n\n")[0].replace("\n", " "),
        )
        for name in hansa.__all__
    ]
    return _table(("name", "module", "what it is"), rows)


def _home(name: str) -> str:
    return str(getattr(hansa, name).__module__)


TABLES: dict[str, Callable[[], str]] = {
    "public-names": public_names,
    "commands": command_sections,
    "exit-codes": exit_codes,
    "settings": lambda: settings(own=False),
    "settings-own": lambda: settings(own=True),
    "settings-ignored": ignored_settings,
    "proxy-flags": lambda: proxy_flags(flags.Origin.KUBE_PROXY),
    "proxy-flags-windows": lambda: proxy_flags(flags.Origin.WINDOWS),
    "proxy-flags-own": lambda: proxy_flags(flags.Origin.OWN),
    "proxy-flags-gone": proxy_gone_flags,
    "proxy-keys": proxy_keys,
    "proxy-gates": proxy_gates,
    "proxy-live": proxy_live,
    "metrics": lambda: metrics_table(own=False),
    "metrics-own": lambda: metrics_table(own=True),
    "metrics-absent": absent_metrics,
    "error-classes": error_classes,
    "error-codes": lambda: error_codes(compute=False),
    "error-codes-compute": lambda: error_codes(compute=True),
    "features": features,
    "quirks": quirks,
    "builds": builds,
    "switches": switches,
    "refusals": refusals,
    "dump-fields": dump_fields,
    "symptoms": symptoms,
    "parity": parity_table,
    "parity-missing": parity_missing,
    **PICTURES,
}

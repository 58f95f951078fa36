"""`hansa heal`: asks the hansa that runs on this node, or does it alone."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

from hansa.config import BindAddress
from hansa.errors import ConfigError, DataplaneError, Fault
from hansa.healing import PATH, find_ports, frontends_of, healed, healed_data

if TYPE_CHECKING:
    from hansa.cli.planes import Plane
    from hansa.pipeline import Pipeline
    from hansa.rules.model import RuleChanges

# A sync that is under way comes first; of a full node on a slow HNS that is a pass of winkernel.passBudget (20 s).
ANSWER_WITHIN_S = 60.0
LONGEST_ANSWER_BYTES = 1024 * 1024
_ALONE = "to do it without one: --source kubernetes, with the settings that `hansa run` has"


def ask(at: BindAddress | None, service: str) -> dict[str, Any]:
    """Have the hansa that has its metrics here do it. Raises ConfigError if it cannot be asked, DataplaneError."""
    if at is None:
        raise ConfigError(Fault("metricsBindAddress", "is off, so a running hansa cannot be asked", _ALONE))
    host = str(at.address)
    if at.address.is_unspecified:
        host = "127.0.0.1" if at.address.version == 4 else "::1"
    connection = http.client.HTTPConnection(host, at.port, timeout=ANSWER_WITHIN_S)
    place = f"http://{f'[{host}]' if ':' in host else host}:{at.port}{PATH}"
    try:
        body = json.dumps({"service": service})
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read(LONGEST_ANSWER_BYTES).decode("utf-8", "replace")
    except TimeoutError as error:
        raise DataplaneError(f"{place}: no answer within {ANSWER_WITHIN_S:g} s; it will still be done") from error
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(Fault(place, f"no hansa answers: {why}", _ALONE)) from error
    finally:
        connection.close()
    return _read(place, answer.status, text)


def _read(place: str, status: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if status == http.client.OK and isinstance(found, dict) and "steps" in found:
        return found
    why = found.get("error") if isinstance(found, dict) else None
    if why is None:
        raise ConfigError(Fault(place, f"is no hansa that can heal: it answers {status}", _ALONE))
    if status in (http.client.SERVICE_UNAVAILABLE, http.client.TOO_MANY_REQUESTS):
        raise DataplaneError(str(why))
    raise ConfigError(Fault("SERVICE", str(why).removeprefix("SERVICE: ")))


def alone(plane: Plane, service: str, pipeline: Pipeline, message: RuleChanges) -> dict[str, Any]:
    """Do it in this process, on a host that no other hansa works on. Raises ConfigError, DataplaneError."""
    from hansa.dataplanes.windows.apply import WindowsDataplane

    dataplane = plane.dataplane()
    if not isinstance(dataplane, WindowsDataplane):
        raise ConfigError(Fault("--dataplane", f"{dataplane.name} keeps nothing that could be made anew"))
    ports = find_ports(service, pipeline)
    dataplane.renew(ports, alone=True)
    report = dataplane.sync(message, now=time.monotonic(), audit=False)
    return healed_data(healed(ports, report, frontends_of(ports, pipeline)))

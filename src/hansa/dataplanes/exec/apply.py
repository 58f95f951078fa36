"""ExecDataplane: a program that is started, fed, and started again when it ends."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

from hansa.dataplanes.base import Change, HostState, Outcome, Result, SyncReport, Verb
from hansa.dataplanes.exec.lines import ExecCommand, line
from hansa.net import IPFamily
from hansa.rules.model import FrontendKey, Rule, RuleChanges, Surroundings

RETRY_S = 5.0
# A program that does not read for so long is stuck; the engine must not be.
WRITE_LIMIT_S = 10.0
END_LIMIT_S = 2.0


class ExecDataplane:
    """`_told` is what the program that runs now has been told; None = it has been told nothing yet."""

    name = "exec"

    def __init__(self, command: ExecCommand) -> None:
        self._command = command
        self._desired: dict[FrontendKey, Rule] = {}
        self._surroundings: Surroundings | None = None
        self._told: dict[FrontendKey, Rule] | None = None
        self._told_surroundings: Surroundings | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        """A program that has ended is noticed at each sync, audits included, and started again."""
        del audit
        self._take_in(changes)
        ended = self._look_after()
        planned = self._differences()
        # A program that has been told nothing yet is told, also that there is nothing.
        if not planned and self._told is not None and self._told_surroundings == self._surroundings:
            return SyncReport(HostState.HEALTHY)
        error = self._tell()
        outcome = Outcome.FAILED if error else Outcome.DONE
        pending = [key for _, key in planned] if error else []
        return SyncReport(
            HostState.UNAVAILABLE if error else HostState.HEALTHY,
            results=tuple(Result(change, outcome, error) for change, _ in planned),
            pending=tuple(str(key) for key in pending),
            pending_by_family={
                family: tuple(str(key) for key in pending if key.family is family) for family in IPFamily
            },
            conditions=tuple(filter(None, (ended, error))),
            retry_at=now + RETRY_S if error else None,
            host_calls=1,
        )

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        del now
        self._take_in(changes)
        return [change for change, _ in self._differences()]

    def close(self) -> None:
        """The end of its input tells the program to end; what it has set up is its own affair."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _take_in(self, changes: RuleChanges) -> None:
        changes.apply_to(self._desired)
        self._surroundings = changes.surroundings

    def _differences(self) -> list[tuple[Change, FrontendKey]]:
        told = self._told or {}
        found = [(Verb.DELETE, key) for key in told if key not in self._desired]
        found += [(Verb.CREATE, key) for key in self._desired if key not in told]
        found += [(Verb.MODIFY, key) for key, rule in self._desired.items() if key in told and told[key] != rule]
        return [(Change(verb, "frontend", str(key), "not told yet"), key) for verb, key in found]

    def _look_after(self) -> str:
        """What is to be said of a program that has ended, "" if it has not."""
        if self._process is None or self._process.poll() is None:
            return ""
        code = self._process.returncode
        self._drop()
        return f"{self._command.words[0]} has ended with {code} and is started again"

    def _drop(self) -> None:
        process, self._process, self._told = self._process, None, None
        assert process is not None
        assert process.stdin is not None
        process.wait()
        with suppress(OSError):
            process.stdin.close()

    def _tell(self) -> str:
        """Write one line; returns why it could not be, "" if it was."""
        assert self._surroundings is not None
        try:
            if self._process is None:
                self._told = None
                self._process = subprocess.Popen(self._command.words, stdin=subprocess.PIPE, bufsize=0)
        except OSError as refusal:
            return f"{self._command.words[0]} cannot be started: {refusal.strerror}"
        told = self._told if self._command.changes else None
        if told is None:
            text = line(self._desired.values(), (), self._surroundings, complete=True)
        else:
            new = [rule for key, rule in self._desired.items() if told.get(key) != rule]
            gone = [key for key in told if key not in self._desired]
            text = line(new, gone, self._surroundings, complete=False)
        error = self._write(self._process, text)
        if error:
            # Half a line may have been read, so this program can be told nothing more.
            self._process.kill()
            self._drop()
            return error
        self._told, self._told_surroundings = dict(self._desired), self._surroundings
        return ""

    def _write(self, process: subprocess.Popen[bytes], text: bytes) -> str:
        """In a thread of its own, since not every system can give up a write to a pipe."""
        assert process.stdin is not None
        stdin, stuck = process.stdin, f"{self._command.words[0]} has read nothing for {WRITE_LIMIT_S:g} s"
        errors = [""]

        def work() -> None:
            left = memoryview(text)
            try:
                while left:
                    left = left[stdin.write(left) :]
            except OSError as error:
                errors[0] = f"{self._command.words[0]} does not read: {error.strerror}"

        writer = threading.Thread(target=work, name="hansa-exec", daemon=True)
        writer.start()
        writer.join(WRITE_LIMIT_S)
        if writer.is_alive():
            process.kill()  # then the write has nobody to go to, and ends
            writer.join()
            return stuck
        return errors[0]

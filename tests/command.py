"""The command line as people type it, in the process of the test: the fixture `hansa`, for all tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hansa import cli

Output = tuple[int, str, str]  # exit code, output, errors
Hansa = Callable[..., Output]


@pytest.fixture
def hansa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Hansa:
    """Runs one command: its arguments in, what became of it out."""

    def call(*arguments: object) -> Output:
        monkeypatch.setattr("sys.argv", ["hansa", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    monkeypatch.delenv("KUBE_NETWORK", raising=False)
    return call

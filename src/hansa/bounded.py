"""Files are read up to a size: what is far larger than it should be is refused, not taken into memory."""

from __future__ import annotations

import errno
from pathlib import Path

LONGEST_CONFIG_BYTES = 4 * 1024 * 1024  # a ConfigMap takes 1 MiB
# Manifests and dumps of whole clusters and nodes: 10,000 Services were 35 MB of JSON.
LONGEST_DUMP_BYTES = 1024 * 1024 * 1024


def read_file(path: Path, longest_bytes: int) -> bytes:
    """The whole file. Raises OSError, EFBIG among them: it is longer than that."""
    with path.open("rb") as file:
        content = file.read(longest_bytes + 1)
    if len(content) > longest_bytes:
        raise OSError(errno.EFBIG, f"larger than {longest_bytes} bytes", str(path))
    return content

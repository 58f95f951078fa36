"""What talks gRPC is only collected where the extra hansa[kpng] is installed: everywhere but on Windows under Wine."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("grpc") else ["test_brain.py", "test_kpng_source.py"]

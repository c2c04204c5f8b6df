"""What a training tells while it goes."""

from typing import Any

Event = dict[str, Any]
"""{"kind": "history" | "started" | "step" | "epoch" | "warning" | "stopped" | "diverged" | "trained" | "test", ...}:
plain values, from rank 0 alone, but for warnings. history: epochs before the checkpoint gone on from; some may never
have arrived."""

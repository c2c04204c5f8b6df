"""The counts of a build's stages, and their progress lines."""

import time


class StageLog:
    """The log of one build. `counts` goes into the manifest."""

    def __init__(self, started: float) -> None:
        """started: time.monotonic() at the start."""
        self.started = started
        self.counts: dict[str, dict[str, int]] = {}

    def done(self, stage: str, **numbers: int) -> None:
        """Keeps a stage's counts and prints them as a progress line."""
        self.counts[stage] = numbers
        self.say(stage, "  ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in numbers.items()))

    def say(self, stage: str, text: str) -> None:
        """Prints a progress line."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {stage.replace('_', ' '):<14} {text}", flush=True)

"""What the stages of a build counted, and the lines they print."""

import time


class StageLog:
    """Of one build. counts goes into the manifest."""

    def __init__(self, started: float) -> None:
        """started: on time.monotonic()."""
        self.started = started
        self.counts: dict[str, dict[str, int]] = {}

    def done(self, stage: str, **numbers: int) -> None:
        """Keeps a stage's counts and prints its line."""
        self.counts[stage] = numbers
        self.say(stage, "  ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in numbers.items()))

    def say(self, stage: str, text: str) -> None:
        """A progress line."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {stage.replace('_', ' '):<14} {text}", flush=True)

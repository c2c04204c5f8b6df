"""The counts of a build's stages, and their progress lines."""

import time

from pnfrec_dist.files.text import counted

COUNTED = ("rows", "users", "items", "positives", "targets", "interactions")
"""Last words of names that are plural; the others are reasons."""


class StageLog:
    """The log of one build. `counts` goes into the manifest."""

    def __init__(self, started: float) -> None:
        """started: time.monotonic() at the start."""
        self.started = started
        self.counts: dict[str, dict[str, int]] = {}

    def done(self, stage: str, **numbers: int) -> None:
        """Keeps a stage's counts and prints them as a progress line."""
        self.counts[stage] = numbers
        self.say(stage, "  ".join(_shown(k.replace("_", " "), v) for k, v in numbers.items()))

    def say(self, stage: str, text: str) -> None:
        """Prints a progress line."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {stage.replace('_', ' '):<14} {text}", flush=True)


def _shown(name: str, number: int) -> str:
    """("users", 1) -> 1 user."""
    return counted(number, name[:-1]) if name.split()[-1] in COUNTED else f"{number:,} {name}"

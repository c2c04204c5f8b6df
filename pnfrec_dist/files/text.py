"""Numbers, times and sizes as text for people."""

from collections.abc import Iterable


def duration(seconds: float) -> str:
    """3725 -> 1h02m, 125 -> 2m05s, 7 -> 7s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def memory_size(count: float) -> str:
    """Of bytes, in powers of two: 3 << 20 -> 3 MiB, 3 << 29 -> 1.5 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def file_size(count: float) -> str:
    """Of bytes, in powers of ten: 1_234_567 -> 1.2 MB."""
    return f"{count / 1e6:,.1f} MB"


def score(value: float | None) -> str:
    """0.09824 -> 0.0982; None -> -."""
    return "-" if value is None else f"{value:.4f}"


def four(value: float) -> str:
    """Four digits as the paper prints them: 0.0982 -> .0982, -0.0174 -> -.0174."""
    return f"{round(value, 4) + 0.0:.4f}".replace("0.", ".", 1)  # + 0.0: no minus before zero


def signed(value: float) -> str:
    """0.0982 -> +.0982, -0.0174 -> -.0174."""
    return ("+" if value >= 0 else "") + four(value)


def span(values: Iterable[int]) -> str:
    """{5} -> 5, {2, 3, 4} -> 2 to 4."""
    low, high = min(numbers := list(values)), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def counted(numbers: int | Iterable[int], what: str) -> str:
    """5 -> 5 seeds, {1} -> 1 seed, {2, 3, 4} -> 2 to 4 seeds."""
    found = [numbers] if isinstance(numbers, int) else list(numbers)
    return f"{span(found)} {what}{'s' if max(found) != 1 else ''}"

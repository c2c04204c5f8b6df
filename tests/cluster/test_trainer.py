"""The error if workers failed too often."""

from pathlib import Path

from pnfrec_dist.cluster.trainer import _say_failed
from pnfrec_dist.config.settings import Settings


def test_a_failure_is_a_line_and_all_of_it_a_file(tmp_path: Path) -> None:
    text = _say_failed(ValueError("a\nb"), "worker 0: died", Settings(max_failures=2), tmp_path)
    assert text == (
        "workers failed more than 2 times (--max-failures); last error: worker 0: died "
        f"(more in {tmp_path}/failure.txt)"
    )
    assert "ValueError: a\nb" in (tmp_path / "failure.txt").read_text()
    assert _say_failed(ValueError("why"), "", Settings(), tmp_path / "gone").endswith("last error: why")

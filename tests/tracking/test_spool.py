"""Records survive crashes of the process and failures of MLflow."""

import resource
from pathlib import Path

from pnfrec_dist.tracking.spool import RECORDS, SENT, Spool, locked


def test_records_come_in_order_once_and_stay(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.add("a", "metrics", step=1) and spool.add("b", "tags")
    assert not spool.add("a", "metrics", step=2), "a key counts once"
    again = Spool(tmp_path)
    assert [(r["key"], r["kind"]) for r in again.records] == [("a", "metrics"), ("b", "tags")]
    assert again.records[0]["step"] == 1 and not again.add("b", "tags")
    assert (again.sent, again.unsent) == (0, 2)
    again.mark_sent(1)
    record = Spool(tmp_path).next()
    assert record is not None and record["key"] == "b"


def test_a_line_cut_short_is_taken_back(tmp_path: Path) -> None:
    Spool(tmp_path).add("a", "metrics")
    whole = (tmp_path / RECORDS).read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        (tmp_path / RECORDS).write_bytes(whole + whole[:cut])
        spool = Spool(tmp_path)
        assert [r["key"] for r in spool.records] == ["a"]
        assert (tmp_path / RECORDS).read_bytes() == whole


def test_a_lost_or_broken_count_sends_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add("a", "metrics")
    spool.mark_sent(1)
    for content in ("", "x", "99"):
        (tmp_path / SENT).write_text(content)
        assert Spool(tmp_path).sent == (1 if content == "99" else 0)


def test_a_full_disk_keeps_records_in_memory_until_there_is_room(tmp_path: Path) -> None:
    """The system accepts ten more bytes for a file, then fails."""
    spool = Spool(tmp_path)
    spool.add("a", "metrics")
    before = (tmp_path / RECORDS).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        told = spool.add("b", "metrics"), spool.add("b", "metrics")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told == (True, False)
    assert len(spool.pending) == 1 and "too large" in spool.problem and spool.unsent == 1
    assert (tmp_path / RECORDS).read_bytes() == before, "what was written of it is taken back"
    spool.add("c", "metrics")
    assert not spool.pending and not spool.problem
    assert [r["key"] for r in Spool(tmp_path).records] == [r["key"] for r in spool.records] == ["a", "b", "c"]


def test_one_process_sends(tmp_path: Path) -> None:
    with locked(tmp_path, wait=False) as first, locked(tmp_path, wait=False) as second:
        assert first and not second
    with locked(tmp_path, wait=False) as again:
        assert again

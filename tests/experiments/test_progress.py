"""What a person sees in a log while a run goes."""

import pytest

from pnfrec_dist.experiments import progress
from pnfrec_dist.experiments.progress import LINE_SECONDS, ProgressReport, duration, headline_table


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7.4, 59.6, 125, 3725)] == ["7s", "1m00s", "2m05s", "1h02m"]


def test_the_table_shows_what_there_is() -> None:
    table = headline_table({"pnfrec": {"hr_p_at_10": 0.5, "ndcg_delta_at_10": -0.25}, "popularity": {}})
    head, first, second = table.splitlines()
    assert head.split() == ["model", "HR_p@10", "NDCG_p@10", "dHR@10", "dNDCG@10"]
    assert first.split() == ["pnfrec", "0.5000", "-", "-", "-0.2500"]
    assert second.split() == ["popularity", "-", "-", "-", "-"]
    assert len(head) == len(first) == len(second)


def test_a_long_epoch_gets_a_line_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with ProgressReport(max_epochs=2, first_epoch=1, num_workers=2) as report:
        for step in range(1, 6):
            clock.now += LINE_SECONDS / 2
            report.show({"kind": "step", "epoch": 1, "step": step, "steps": 10, "loss": 1.5, "users_per_s": 2000.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["epoch 1/2", "step 2/10"], ["epoch 1/2", "step 4/10"]]
    assert lines[0].endswith("at most 4m30s left"), "18 steps of 15 s"


def test_failures_and_new_starts_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = ProgressReport(max_epochs=2, first_epoch=1, num_workers=2)
    report.show({"kind": "started", "epoch": 1, "step": 0, "workers": 2})
    assert not capsys.readouterr().out, "as planned"
    report.show({"kind": "failure", "reasons": {1: "it died"}})
    report.show({"kind": "started", "epoch": 1, "step": 7, "workers": 1})
    report.show({"kind": "warning", "text": "[b]no markup[/b]"})
    assert capsys.readouterr().out.splitlines() == [
        "warning: workers failed (worker 1: it died)",
        "workers run again (1 of 2), from epoch 1 after step 7",
        "warning: [b]no markup[/b]",
    ]

"""Which run a command resumes."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.waiting import wait_until

from pnfrec_dist.config.settings import CheckpointSettings, EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.training.checkpoint_manager import checkpoint_path, checkpoints, newest_usable
from pnfrec_dist.training.events import BestTested
from pnfrec_dist.training.loop import Hooks, TrainLoop
from pnfrec_dist.training.run_directory import Run, begin, choose_run, read_run

SETTINGS = Settings(
    epochs=3,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(SETTINGS, output_dir=str(tmp_path / "runs"))


def start(settings: Settings, digest: str = "d", ended: str = "") -> Run:
    """A run that was started and whose command has ended."""
    run = choose_run(replace(settings, resume="never"), digest)
    begin(run, settings)
    run.ended = ended
    run.write()
    return run


def train(run: Run, settings: Settings, prepared: Path, steps: int) -> None:
    torch.set_num_threads(1)
    asked = iter(range(1, 1000))
    hooks = Hooks(lambda _: None, lambda: next(asked) >= steps)
    TrainLoop(settings, open_prepared(prepared), run.directory, World(), hooks).run()


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_same_command(settings: Settings) -> None:
    first = choose_run(settings, "d")
    assert not first.directory.exists(), "choosing writes nothing"
    older, newer = start(settings), start(settings)
    os.utime(older.directory / "run.json", (1, 1))
    assert choose_run(settings, "d") == newer
    assert choose_run(replace(settings, num_workers=7, stall_timeout=9.0), "d") == newer
    taken = (older.directory, newer.directory)
    for other in (replace(settings, epochs=4), replace(settings, seed=1), replace(settings, resume="never")):
        assert choose_run(other, "d").directory not in taken
    assert choose_run(settings, "other data").directory not in taken


def test_auto_leaves_ended_broken_and_driven_runs_alone(settings: Settings) -> None:
    start(settings, ended="finished")
    start(settings, ended="diverged")
    broken, driven = start(settings), start(settings)
    (broken.directory / "run.json").write_text('{"run_id": "of an older version"}')
    with driven.locked():
        chosen = choose_run(settings, "d")
        assert not chosen.directory.exists()
        with pytest.raises(InputError, match="is being trained by another command"), driven.locked():
            pass
    assert choose_run(settings, "d") == driven


def hold(run: Run) -> None:
    with run.locked():
        (run.directory / "held").touch()
        signal.pause()


def test_a_killed_command_lets_go_of_its_run(settings: Settings) -> None:
    run = start(settings)
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(run,))
    process.start()
    wait_until((run.directory / "held").exists, unless=lambda: not process.is_alive())
    assert choose_run(settings, "d") != run
    process.kill()
    process.join()
    assert choose_run(settings, "d") == run


def test_a_named_checkpoint_sets_newer_ones_aside(settings: Settings, prepared: Path) -> None:
    run = start(settings)
    for steps in (3, 2, 2):
        train(run, settings, prepared, steps)
    assert [path.name[-1] for path in checkpoints(run.directory)] == ["7", "5", "4"]
    named = replace(settings, resume=str(checkpoint_path(run.directory, 5)))
    chosen = choose_run(named, "d")
    assert chosen == run and begin(chosen, named) == (2, 1)
    kept = sorted(path.name[:24] for path in (run.directory / "checkpoints").iterdir())
    assert kept == ["set-aside-step-000000007", "step-000000004", "step-000000005"]
    whole = replace(settings, resume=str(run.directory))
    assert begin(choose_run(whole, "d"), whole) == (2, 1)
    (aside,) = (run.directory / "checkpoints").glob("set-aside-*")
    with pytest.raises(InputError, match="set aside, rename it first"):
        choose_run(replace(settings, resume=str(aside)), "d")
    aside.rename(checkpoint_path(run.directory, 7))
    assert begin(choose_run(whole, "d"), whole) == (2, 3)


def test_a_checkpoint_whose_best_epoch_is_gone_is_passed_over(settings: Settings, prepared: Path) -> None:
    """For example, the disk was full when the best epoch ended. The run resumes before that epoch and can end."""
    settings = replace(settings, checkpoint=CheckpointSettings(keep=3))
    run = start(settings)
    train(run, settings, prepared, 2)
    train(run, settings, prepared, 4)
    newest, best, oldest = checkpoints(run.directory)
    assert (newest.name[-1], best.name[-1], oldest.name[-1]) == ("6", "4", "2")
    shutil.rmtree(best)
    (best.parent / "step-000000009.bak").mkdir()
    path, (problem,) = newest_usable(run.directory)
    assert path == oldest and str(newest) in problem and str(best) in problem
    assert begin(choose_run(settings, "d"), settings) == (1, 2)
    events = []
    hooks = Hooks(events.append, lambda: False)
    TrainLoop(settings, open_prepared(prepared), run.directory, World(), hooks).run()
    assert isinstance(events[-1], BestTested)


def test_a_read_only_run_of_somebody_else_is_not_taken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(settings)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (run.directory / "run.lock").touch()
    monkeypatch.setattr(Run, "locked", refuse)
    assert choose_run(settings, "d").directory != run.directory


def test_what_cannot_be_gone_on_with_is_said(settings: Settings, prepared: Path, tmp_path: Path) -> None:
    def refused(settings: Settings, digest: str = "d") -> str:
        with pytest.raises(InputError) as caught:
            choose_run(settings, digest)
        return str(caught.value)

    run = start(settings)
    named = replace(settings, resume=str(run.directory))
    assert "no such directory" in refused(replace(settings, resume="nowhere"))
    assert "is not a run" in refused(replace(settings, resume=str(tmp_path)))
    assert "has no complete checkpoint" in refused(named)
    train(run, settings, prepared, 5)
    other = replace(named, seed=7, encoder=EncoderSettings(hidden_size=16, num_blocks=1, max_length=5))
    assert "differs in encoder.hidden_size 8 -> 16; seed 42 -> 7" in refused(other)
    assert "the content of the data set" in refused(named, "other")
    file = checkpoint_path(run.directory, 5) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in refused(replace(named, resume=str(checkpoint_path(run.directory, 5))))
    assert choose_run(named, "d") == run, "the one before it is whole"
    (checkpoint_path(run.directory, 4) / "COMMITTED").unlink()
    assert "has no complete checkpoint" in refused(named)


def test_a_run_reads_back(settings: Settings) -> None:
    run = start(settings, ended="finished")
    assert read_run(run.directory) == run

"""Position and early stopping of a run."""

import json

from pnfrec_dist.training.state import TrainState


def test_it_is_json() -> None:
    state = TrainState(epoch=3, step=2, total_steps=9, best_score=0.25, best_epoch=1)
    assert TrainState(**json.loads(json.dumps(state.to_mapping()))) == state


def test_epochs_without_improvement_are_those_finished_since_the_best() -> None:
    assert TrainState().epochs_without_improvement == 0
    assert TrainState(epoch=4, best_epoch=3).epochs_without_improvement == 0
    assert TrainState(epoch=6, best_epoch=3).epochs_without_improvement == 2


def test_a_skipped_step_moves_on_and_adds_nothing() -> None:
    state = TrainState()
    before = state.to_mapping()
    state.skip_step()
    state.skip_step()
    assert (state.step, state.total_steps, state.skipped, state.skipped_in_a_row) == (2, 2, 2, 2)
    sums = {name: value for name, value in state.to_mapping().items() if name.startswith("loss")}
    assert sums and all(before[name] == value for name, value in sums.items())
    state.start_epoch(2)
    assert (state.epoch, state.step, state.total_steps, state.skipped, state.skipped_in_a_row) == (2, 0, 2, 0, 2)

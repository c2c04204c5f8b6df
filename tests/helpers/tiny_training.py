"""A training of one epoch on the tiny prepared data set."""

from pathlib import Path

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.distributed import World
from pnfrec_dist.training.events import BestTested, Event
from pnfrec_dist.training.loop import Hooks, TrainLoop

SETTINGS = Settings(
    dataset="tiny",
    epochs=1,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=3),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
)


def trained(data: PreparedData, settings: Settings, run_dir: Path) -> Path:
    """The checkpoint of a training's best epoch."""
    events = list[Event]()
    TrainLoop(settings, data, run_dir, World(), Hooks(events.append, lambda: False)).run()
    return Path(next(e for e in events if isinstance(e, BestTested)).checkpoint)

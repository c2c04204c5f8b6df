"""Builds an index of a model's items, with users of a data set as the measure."""

import time
from pathlib import Path

import torch

from pnfrec_dist.config.inference_settings import IndexSettings, RecommendSettings
from pnfrec_dist.data.user_histories import read_users, user_parts
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.text import duration, file_size
from pnfrec_dist.inference.item_index import COUNT, INDEX, build, require_replaceable
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings
from pnfrec_dist.inference.trained_model import open_with_data


def build_index(settings: IndexSettings) -> int:
    """Raises InputError for a model and data that do not fit, and for a directory with other content."""
    out = Path(settings.out)
    require_replaceable(out)
    asked = RecommendSettings(
        run=settings.run, dataset=settings.dataset, gamma=settings.gamma, data_dir=settings.data_dir
    )
    trained, data = open_with_data(asked)
    maker = ListMaker(trained, data.raw_item_ids(), ListSettings.of(asked, trained), Filters(), torch.device("cpu"))
    found, wanted = [], settings.users
    for part in user_parts(data):
        vectors = maker.vectors(read_users(part, data.num_items, None, maker.reads))[:wanted]
        found.append(vectors)
        wanted -= len(vectors)
        if not wanted:
            break
    hidden_BD = torch.cat(found)
    if not len(hidden_BD):
        raise InputError(f"no user of {data.directory} has a history that the model reads; name another --dataset")
    started = time.monotonic()
    print(f"{trained.settings.model} ({len(trained.raw_ids):,} items), {len(hidden_BD):,} users of {data.directory}")
    about = build(trained, hidden_BD, settings.recall, out)
    size = file_size((out / INDEX).stat().st_size)
    print(f"{about.lists:,} lists, of which a search reads {about.searched:,}; {size}")
    print(f"recall@{COUNT} {about.recall:.3f}: the share of the exact best {COUNT} items that the index finds")
    print(f"wrote {out} in {duration(time.monotonic() - started)}; use it: recommend --index {out}")
    return 0

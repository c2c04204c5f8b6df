"""python -m benchmarks.peers.own_lists RUN DATA_DIR OUT.json: times top lists of all users in one process.

Writes {users, seconds}; reading the users is part of the seconds, the start of the process is not, as for the peers.
"""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import torch

from benchmarks.peers.exchange import LIST_LENGTH
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.user_histories import read_users, user_parts
from pnfrec_dist.files.locations import Location
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings
from pnfrec_dist.inference.trained_model import open_trained


def main(run: str, data_dir: str, out: str) -> None:
    trained = open_trained(run, data_dir)
    data = open_prepared(Location(data_dir) / trained.settings.dataset)
    settings = ListSettings(LIST_LENGTH, 0.0, keep_seen=False, batch_size=256)
    maker = ListMaker(trained, pa.array(trained.raw_ids), settings, Filters(), torch.device("cpu"))
    started, users = time.perf_counter(), 0
    for part in user_parts(data):
        found = read_users(part, data.num_items, None, maker.reads)
        maker.make(found)
        users += len(found)
    content = {"users": users, "seconds": time.perf_counter() - started}
    Path(out).write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""RePlay's metrics of some lists: python -m benchmarks.peers.replay_metrics CASES.json OUT.json, in its environment."""

import json
import sys
import warnings
from pathlib import Path

from replay.metrics import MRR, NDCG, Coverage, HitRate


def main() -> None:
    """A case: cutoffs [k, ...], lists {user: [[item, score], ...]}, targets {user: item}, catalog [item, ...]."""
    warnings.simplefilter("ignore")
    found = []
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        lists = {user: [(item, score) for item, score in items] for user, items in case["lists"].items()}
        targets = {user: [item] for user, item in case["targets"].items()}
        metrics = {}
        if targets:
            for metric in (HitRate, NDCG, MRR):
                metrics |= metric(case["cutoffs"])(lists, targets)
        if lists:
            metrics |= Coverage(case["cutoffs"])(lists, {"catalog": case["catalog"]})
        found.append(metrics)
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

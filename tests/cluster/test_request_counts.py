"""Counts of requests as Prometheus metrics, against plain counts."""

import random

from prometheus_client.parser import text_string_to_metric_families

from pnfrec_dist.cluster.request_counts import BATCHES, SECONDS, CountBoard, Counts, Histogram


def samples(board: CountBoard) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(board.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_sum_over_replicas_is_told_also_of_those_that_have_ended() -> None:
    rng = random.Random(0)
    board, seen, batches = CountBoard(), list[tuple[int, float]](), list[int]()
    for replica in ("a", "b"):
        for _ in range(3):
            counts = Counts()
            for _ in range(20):
                seen.append((rng.choice([200, 200, 400]), rng.choice([0.005, rng.random() * 0.3, 7.0])))
                counts.see(*seen[-1])
                batches.append(rng.randint(1, 64))
                counts.batches.see(batches[-1])
            board.add(replica, "models:/m/1", counts)
    found = samples(board)
    for status in (200, 400):
        of_status = sum(one == status for one, _ in seen)
        assert found["pnfrec_requests_total", (("status", str(status)),)] == of_status
    for bound in SECONDS:
        below = sum(seconds <= bound for _, seconds in seen)
        assert found["pnfrec_request_seconds_bucket", (("le", str(bound)),)] == below
    assert found["pnfrec_request_seconds_bucket", (("le", "+Inf"),)] == len(seen)
    for bound in BATCHES:
        below = sum(size <= bound for size in batches)
        assert found["pnfrec_batch_requests_bucket", (("le", str(bound)),)] == below
    assert found["pnfrec_batch_requests_sum", ()] == sum(batches)
    assert found["pnfrec_replicas", (("model", "models:/m/1"),)] == 2


def test_replicas_are_counted_by_model_until_they_are_silent() -> None:
    board = CountBoard()
    board.add("a", "one", Counts())
    board.add("b", "two", Counts())
    board.add("a", "two", Counts())
    assert samples(board)["pnfrec_replicas", (("model", "two"),)] == 2 and board.running() == {"two": 2}
    board.seen["b"] = (board.seen["b"][0] - 60, "two")
    assert samples(board)["pnfrec_replicas", (("model", "two"),)] == 1


def test_a_value_at_a_bound_is_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.5):
        histogram.see(value)
    assert histogram.counts == [1, 2, 1] and histogram.total == 7.0

"""The built-in data set: ratings with tastes, dislikes and sequential drift, generated from a seed.

Each item belongs to a genre and has a place on the genre's ring. A user likes a few genres and dislikes a few others.
Half of the interactions continue a liked genre: they move a few steps on its ring, so the order of likes carries
information. The others are exposures, drawn by popularity, often from disliked genres. Ratings follow taste with
noise. So popularity is a fair baseline, the sequence of likes adds information, and dislikes are systematic.
"""

import os
from pathlib import Path

import numpy as np

from pnfrec_dist.files.atomic import replaced

USERS = 2_000
ITEMS = 1_000
GENRES = 20
MEAN_RATINGS, LEAST_RATINGS = 50, 12
"""of a user"""
DAYS = 240
START = 1_600_000_000
LIKED_GENRES = 3
DISLIKED_GENRES = 6
TITLES = "items.csv"


def generate(
    seed: int = 0,
    users: int = USERS,
    items: int = ITEMS,
    mean_ratings: int = MEAN_RATINGS,
    least_ratings: int = LEAST_RATINGS,
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings and catalog, both int64.

    Ratings: about users * mean_ratings rows of (user, item, rating 1..5, epoch seconds), in order of user, then time.
    Catalog: rows of (item, genre, place on its ring), in order of item.
    """
    rng = np.random.default_rng(seed)
    genre_of = rng.permutation(np.arange(items) % GENRES)
    popularity = rng.lognormal(0.0, 1.2, items)
    rings = [np.flatnonzero(genre_of == g) for g in range(GENRES)]
    for ring in rings:
        rng.shuffle(ring)

    genres = np.argsort(rng.random((users, GENRES)), axis=1)
    liked = genres[:, :LIKED_GENRES]
    disliked = genres[:, LIKED_GENRES : LIKED_GENRES + DISLIKED_GENRES]
    affinity = np.zeros((users, GENRES))
    np.put_along_axis(affinity, liked, 1.0, axis=1)
    np.put_along_axis(affinity, disliked, -1.0, axis=1)
    place = rng.integers(0, items // GENRES, (users, GENRES))
    current = liked[:, 0].copy()
    lengths = np.clip(rng.lognormal(np.log(mean_ratings) - 0.125, 0.5, users), least_ratings, items // 4).astype(int)
    unseen = np.ones((users, items), dtype=bool)

    rows = []
    for step in range(lengths.max()):
        active = np.flatnonzero(step < lengths)
        drifting = rng.random(users) < 0.35
        current = np.where(drifting, liked[np.arange(users), rng.integers(0, LIKED_GENRES, users)], current)
        continues = rng.random(users) < 0.5
        for user in active:
            item = -1
            if continues[user]:
                item = _next_on_ring(rings[current[user]], place[user], current[user], unseen[user], rng)
            if item < 0:
                item = _exposure(popularity, affinity[user, genre_of], unseen[user], rng)
            unseen[user, item] = False
            rows.append((user, item))
    pairs = np.array(rows)
    taste = affinity[pairs[:, 0], genre_of[pairs[:, 1]]] + 0.15 * np.log(popularity[pairs[:, 1]])
    ratings = np.clip(np.rint(3.2 + 1.3 * taste + rng.normal(0, 0.7, len(pairs))), 1, 5).astype(int)

    order = np.argsort(pairs[:, 0], kind="stable")
    user_ids, item_ids = pairs[order, 0], pairs[order, 1]
    joined = START + rng.integers(0, DAYS * 86_400 * 6 // 10, users)
    times = rng.integers(joined[user_ids], START + DAYS * 86_400)
    times = times[np.lexsort((times, user_ids))]
    user_names, item_names = rng.permutation(users) + 1, rng.permutation(items) + 1
    table = np.column_stack([user_names[user_ids], item_names[item_ids], ratings[order], times])
    place_of = np.empty(items, dtype=np.int64)
    for ring in rings:
        place_of[ring] = np.arange(len(ring))
    catalog = np.column_stack([item_names, genre_of, place_of])
    return table[np.argsort(table[:, 0], kind="stable")], catalog[np.argsort(item_names)]


def _next_on_ring(
    ring: np.ndarray, places: np.ndarray, genre: int, unseen: np.ndarray, rng: np.random.Generator
) -> int:
    """The next unseen item a few steps further on a genre's ring, or -1 if none was found."""
    for _ in range(len(ring)):
        places[genre] = (places[genre] + rng.geometric(0.25)) % len(ring)
        item = ring[places[genre]]
        if unseen[item]:
            return int(item)
    return -1


def _exposure(popularity: np.ndarray, affinity: np.ndarray, unseen: np.ndarray, rng: np.random.Generator) -> int:
    """An unseen item drawn by popularity; items of disliked genres have a larger weight."""
    weight = np.cumsum(popularity * unseen * np.where(affinity < 0, 3.0, 1.0))
    return int(np.searchsorted(weight, rng.random() * weight[-1], side="right"))


def write_ratings(path: Path, seed: int = 0, **sizes: int) -> None:
    """Writes items.csv (item,title) next to `path`, then `path` (user,item,rating,timestamp), each in one move. sizes:
    of generate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ratings, catalog = generate(seed, **sizes)
    for file, rows, header, fmt in (
        (path.with_name(TITLES), catalog, "item,title", "%d,Genre %d No. %d"),
        (path, ratings, "user,item,rating,timestamp", "%d,%d,%d,%d"),
    ):
        with replaced(file, writer=os.getpid()) as draft:
            np.savetxt(draft, rows, fmt=fmt, header=header, comments="")

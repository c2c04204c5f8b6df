import torch
from hypothesis import given
from hypothesis import strategies as st

from pnfrec_dist.model.likes_order import likes_first

windows = st.integers(1, 6).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=4)
)


@given(groups=st.lists(windows, max_size=3))
def test_likes_come_first_and_each_token_knows_the_newest(groups: list[list[list[bool]]]) -> None:
    """groups: whether each token of each window is a dislike."""
    flat = [disliked for group in groups for window in group for disliked in window]
    sizes = tuple((len(group), len(group[0])) for group in groups)
    order_P, newest_P = likes_first(torch.tensor(flat, dtype=torch.bool), sizes)
    assert sorted(order_P.tolist()) == list(range(len(flat)))
    first = 0
    for group in groups:
        for window in group:
            tokens = range(first, first + len(window))
            likes = [token for token in tokens if not flat[token]]
            dislikes = [token for token in tokens if flat[token]]
            assert order_P[first : first + len(window)].tolist() == likes + dislikes
            for token in tokens:
                earlier = [like for like in likes if like <= token]
                place = int(newest_P[token])
                assert (order_P[place] == earlier[-1] and place >= first) if earlier else place == -1
            first += len(window)

"""The weighted sum of a score's parts against a formula for each user."""

import pytest
import torch

from pnfrec_dist.model.score_weights import ScoreParts, ScoreWeights

MAIN, LIKES, DISLIKES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
HAS_LIKES = torch.tensor([True, False, True, True, False])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_equals_the_formula_of_each_user(share: float, gamma: float) -> None:
    """A user without a like has the score of the main encoder, whatever the share: the other gives 0 for all items."""
    likes = LIKES * HAS_LIKES[:, None]
    found = ScoreParts(MAIN, likes, HAS_LIKES, DISLIKES).weighted(ScoreWeights(share, gamma))
    for user in range(5):
        liking = share * LIKES[user] + (1 - share) * MAIN[user] if HAS_LIKES[user] else MAIN[user]
        torch.testing.assert_close(found[user], liking - gamma * DISLIKES[user])


def test_parts_that_a_model_lacks_have_no_weight() -> None:
    found = ScoreParts(MAIN, None, None, None).weighted(ScoreWeights(0.3, 0.4))
    torch.testing.assert_close(found, MAIN, rtol=0, atol=0)


def test_rows_are_taken_of_each_part() -> None:
    chosen = torch.tensor([3, 1])
    main_PD, likes_PD, has_likes_P, dislikes_PD = ScoreParts(MAIN, LIKES, HAS_LIKES, None).rows(chosen)
    assert dislikes_PD is None and likes_PD is not None and has_likes_P is not None
    assert torch.equal(main_PD, MAIN[chosen]) and torch.equal(likes_PD, LIKES[chosen])
    assert has_likes_P.tolist() == [True, False]

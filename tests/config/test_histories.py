"""What the main encoder reads of a user, by encoder.history."""

import typing

from pnfrec_dist.config.histories import HISTORIES, History

LISTS = {"positive_items": [1], "negative_items": [2], "items": [1, 2]}


def test_every_choice_is_one_of_the_prepared_lists() -> None:
    assert tuple(HISTORIES) == typing.get_args(History)
    for name, kind in HISTORIES.items():
        assert kind.name == name and kind.choose(**LISTS) is LISTS[kind.column]


def test_likes_alone_are_half_as_long_as_likes_and_dislikes_in_one_sequence() -> None:
    positive, both = HISTORIES["positive"], HISTORIES["all"]
    assert (positive.choose(**LISTS), positive.holds_negatives, positive.windows(50)) == ([1], False, 50)
    assert (both.choose(**LISTS), both.holds_negatives, both.windows(50)) == ([1, 2], True, 100)


def test_dislikes_can_be_predicted_where_they_are_told_from_likes() -> None:
    predicting = {name: kind.predicts_dislikes for name, kind in HISTORIES.items()}
    assert predicting == {"positive": True, "all": False, "signed": True, "both": True}

"""The terms of a loss, the parts of a batch that they need, and their names."""

import pytest

from pnfrec_dist.config.settings import LossSettings
from pnfrec_dist.data.batches import BatchParts
from pnfrec_dist.errors import InputError
from pnfrec_dist.losses.contrastive import CONTRASTIVE
from pnfrec_dist.losses.terms import CE_MAIN, CE_NEGATIVE, needed_parts, term_title, terms_of

OWN = "pnfrec_dist.losses.contrastive:CONTRASTIVE"
"""A term named like one from another module."""


@pytest.mark.parametrize(
    ("loss", "terms", "parts"),
    [
        (LossSettings(), {"ce_main": CE_MAIN}, BatchParts()),
        (LossSettings(alpha=0.5), {"ce_main": CE_MAIN, "ce_negative": CE_NEGATIVE}, BatchParts(negative=True)),
        (LossSettings(beta=0.5), {"ce_main": CE_MAIN, "contrastive": CONTRASTIVE}, BatchParts(contrast=True)),
        (LossSettings(terms=(f"{OWN}=0.5",)), {"ce_main": CE_MAIN, OWN: CONTRASTIVE}, BatchParts(contrast=True)),
        (LossSettings(terms=(f"{OWN}=0",)), {"ce_main": CE_MAIN}, BatchParts()),
    ],
    ids=["positives alone", "alpha", "beta", "a further term", "a further term of weight 0"],
)
def test_terms_of_weight_above_0_say_what_a_batch_holds(
    loss: LossSettings, terms: dict[str, object], parts: BatchParts
) -> None:
    assert terms_of(loss) == terms and list(loss.weights) == list(terms)
    assert needed_parts(loss) == parts


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (OWN, "must be name=weight"),
        (f"{OWN}=much", "must be name=weight"),
        (f"{OWN}=-1", "a finite weight >= 0"),
        (f"{OWN}=inf", "a finite weight >= 0"),
        ("contrastive=0.1", "than those of loss.alpha and loss.beta"),
        ("contrast=0.1", "did you mean 'contrastive'"),
    ],
)
def test_a_further_term_that_does_not_read_so_is_said(entry: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LossSettings(terms=(entry,))


def test_an_object_that_is_no_term_is_said() -> None:
    with pytest.raises(InputError, match=r"^loss\.terms is 'math:pi'.*an object of DirectTerm"):
        needed_parts(LossSettings(terms=("math:pi=1",)))


def test_titles_are_found_by_the_names_in_the_log() -> None:
    assert term_title("ce_positive") == "CE over likes"
    assert term_title("ce_negative") == "CE over dislikes"
    assert term_title("ce_all") != "ce_all"
    assert term_title("somebody_s_own") == "somebody_s_own"

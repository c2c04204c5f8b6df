"""The terms of a loss, the parts of a batch that they need, and their names."""

import pytest
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.batches import BatchParts, TrainBatch
from pnfrec_dist.errors import InputError
from pnfrec_dist.losses.contrastive import CONTRASTIVE
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import (
    CE_MAIN,
    CE_NEGATIVE,
    NO_LOSSES,
    DirectTerm,
    StepTensors,
    logged_names,
    needed_parts,
    term_title,
    terms_of,
)

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


class Named(DirectTerm):
    """A term of any name."""

    def __init__(self, name: str) -> None:
        self.given = name

    def name(self, encoder: EncoderSettings) -> str:
        return self.given

    def title(self, encoder: EncoderSettings) -> str:
        return f"title of {self.given}"

    def count(self, batch: TrainBatch) -> int:
        return 1

    def total(self, tensors: StepTensors, settings: Settings) -> Tensor:
        return tensors.main_PD.sum()


MINE = Named("mine")


@pytest.mark.parametrize("name", ["ce_positive", "ce_negative", "twice", "loss", *NO_LOSSES])
def test_a_name_that_is_in_the_log_already_is_said(name: str) -> None:
    terms = {"ce_main": CE_MAIN, "ce_negative": CE_NEGATIVE, "other": Named("twice"), "mine": Named(name)}
    with pytest.raises(InputError, match=rf"^loss\.terms: more than one value is named '{name}'"):
        logged_names(terms, EncoderSettings())


@pytest.mark.parametrize("name", ["a/b", "a b", "", "..", "norm²"])
def test_a_name_that_mlflow_does_not_take_is_said(name: str) -> None:
    with pytest.raises(InputError, match=r"^loss\.terms: a value is named .* in the log; use only letters"):
        logged_names({"mine": Named(name)}, EncoderSettings())


def test_a_training_of_two_terms_of_one_name_is_refused() -> None:
    with pytest.raises(InputError, match="named 'contrastive' in the log"):
        Objective(Settings(loss=LossSettings(beta=0.5, terms=(f"{OWN}=0.5",))))


@pytest.mark.parametrize("history", ["positive", "all", "signed", "negative"])
def test_the_two_sides_have_names_of_their_own(history: str) -> None:
    encoder = EncoderSettings(history=history)  # type: ignore[arg-type]
    names = logged_names({"ce_main": CE_MAIN, "ce_negative": CE_NEGATIVE}, encoder)
    assert names == {"ce_main": "ce_main" if history == "negative" else f"ce_{history}", "ce_negative": "ce_negative"}


def test_titles_of_own_terms_are_found_if_they_can_be_imported() -> None:
    assert term_title("mine", [f"{__name__}:MINE"]) == "title of mine"
    assert term_title("mine", ["no_such_module:MINE"]) == "mine"


def test_titles_are_found_by_the_names_in_the_log() -> None:
    assert term_title("ce_positive") == "CE over likes"
    assert term_title("ce_negative") == "CE over dislikes"
    assert term_title("ce_all") != "ce_all"
    assert term_title("ce_signed") == "CE over likes (signed history)"
    assert term_title("somebody_s_own") == "somebody_s_own"

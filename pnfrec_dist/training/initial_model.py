"""Builds the model from settings, with its initial weights."""

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.distributed import World, initial_generator
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreWeights


def build_model(num_items: int, settings: Settings, shards: World | None = None) -> PNFRec:
    """The same settings.seed gives the same weights for any sharding. The model predicts dislikes if a term of the loss
    needs it.

    shards: the ranks that share the rows of the item table; None: each rank holds all.
    """
    generator = initial_generator(settings.seed)
    with_negative = needed_parts(settings.loss).negative
    model = PNFRec(num_items, settings.encoder, generator, with_negative=with_negative, shards=shards)
    model.encoders.weights = initial_weights(settings)
    return model


def initial_weights(settings: Settings) -> ScoreWeights:
    """Those of the settings; before validation has chosen them ("auto"), the likes' encoder alone, and gamma 0."""
    share, gamma = settings.encoder.likes_share, settings.evaluation.gamma
    return ScoreWeights(1.0 if share == "auto" else share, 0.0 if gamma == "auto" else gamma)

"""Builds the model from settings, with its initial weights."""

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.distributed import World, initial_generator
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec


def build_model(num_items: int, settings: Settings, shards: World | None = None) -> PNFRec:
    """The same settings.seed gives the same weights for any sharding. The model predicts dislikes if a term of the loss
    needs it.

    shards: the ranks that share the rows of the item table; None: each rank holds all.
    """
    generator = initial_generator(settings.seed)
    with_negative = needed_parts(settings.loss).negative
    return PNFRec(num_items, settings.encoder, generator, with_negative=with_negative, shards=shards)

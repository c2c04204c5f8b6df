"""What a training evaluates: validation users after each epoch; test users and baselines at the end."""

from collections.abc import Callable
from dataclasses import replace

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.points import Points, points_of
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.schema import how_to_add_points
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError, require
from pnfrec_dist.evaluation.baselines import BASELINES, popularity_scores
from pnfrec_dist.evaluation.holdout import Evaluation, Ranked, ScoreUsers, evaluate, model_scores
from pnfrec_dist.evaluation.weight_search import WeightSearch, is_searched
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.training.result import Tested

MODEL = "model"


class HeldOut:
    """Evaluates a model on the holdout users of a data set; all ranks call it together."""

    def __init__(
        self, settings: Settings, data: PreparedData, model: PNFRec, world: World, progress: Callable[[float], None]
    ) -> None:
        """progress: called after each batch, with the share that is done. Raises InputError as require_points does."""
        self.settings, self.data, self.model, self.world, self.progress = settings, data, model, world, progress
        gamma = settings.evaluation.gamma
        fits = gamma == 0 or model.encoders.predicts_dislikes
        require(fits, "evaluation.gamma", gamma, "0 if loss.alpha is 0, because the model then predicts no dislikes")
        self.subtracts = gamma != 0
        self.gamma_of_validation = 0.0 if gamma == "auto" else gamma
        self.validation = selection_targets(settings, data, with_negative=self.subtracts)
        self.search = None
        if is_searched(settings):
            self.search = WeightSearch(
                settings, search_targets(settings, data, self.validation), model, world, progress
            )

    def validate(self) -> dict[str, float]:
        """Metrics on validation users.

        If the settings say so, the weights of the model's scores are chosen before; they are then among the metrics. A
        gamma that was chosen is used from the test on."""
        if self.search is None:
            return self._of_model(self.validation, self.gamma_of_validation).metrics
        found = self.search.find()
        self.model.encoders.weights = found.weights
        if self.search.targets is self.validation and self.search.takes_all:
            scores = found.score_users(self.model, replace(found.weights, gamma=self.gamma_of_validation))
            of_model = self._evaluate(scores, self.validation, share_catalog=self.model.item_table.is_sharded)
        else:
            of_model = self._of_model(self.validation, self.gamma_of_validation)
        return of_model.metrics | self.chosen_weights()

    def chosen_weights(self) -> dict[str, float]:
        """The weights of the model's scores that were searched; the checkpoint of an epoch holds them."""
        return self.search.metrics(self.model.encoders.weights) if self.search is not None else {}

    def test(self) -> Tested:
        """The model and the baselines on the test users."""
        history = self.settings.encoder.history
        users = self.data.holdout("test", history, with_negative=self.subtracts)
        points = points_of(self.data, "test", history, self.settings.evaluation)
        popularity = {
            name: popularity_scores(self.data.item_counts(positive_only=positive_only), self.world)
            for name, positive_only in BASELINES.items()
        }

        def found(ranked: Ranked) -> dict[str, Evaluation]:
            of_model = {MODEL: self._of_model(ranked, self.model.encoders.weights.gamma)}
            return of_model | {name: self._evaluate(scores, ranked) for name, scores in popularity.items()}

        of_users = found(users)
        of_points = found(points) if points is not None else {}
        return Tested(self.data.user_ids("test"), users, of_users, points, of_points)

    def _of_model(self, ranked: Ranked, gamma: float) -> Evaluation:
        self.model.eval()
        is_sharded = self.model.item_table.is_sharded
        return self._evaluate(model_scores(self.model, self.world, gamma), ranked, share_catalog=is_sharded)

    def _evaluate(self, scores: ScoreUsers, ranked: Ranked, *, share_catalog: bool = False) -> Evaluation:
        return evaluate(
            scores,
            ranked,
            self.data.num_items,
            self.settings.evaluation,
            self.world,
            share_catalog=share_catalog,
            on_batch=self.progress,
        )


def selection_targets(settings: Settings, data: PreparedData, *, with_negative: bool = False) -> Ranked:
    """The validation targets that evaluation.select_on names. with_negative: as in PreparedData.holdout; points always
    have the dislikes. Raises InputError as require_points does."""
    require_points(settings, data)
    history = settings.encoder.history
    by_points = settings.evaluation.select_on != "last"
    points = points_of(data, "validation", history, settings.evaluation) if by_points else None
    return points if points is not None else data.holdout("validation", history, with_negative=with_negative)


def search_targets(settings: Settings, data: PreparedData, of_selection: Ranked | None = None) -> Ranked:
    """The validation targets on which weights of scores are chosen: many points, if the data have them.

    of_selection: selection_targets(), if there are some already."""
    found = of_selection if of_selection is not None else selection_targets(settings, data, with_negative=True)
    if isinstance(found, Points):
        return found
    points = points_of(data, "validation", settings.encoder.history, settings.evaluation)
    return points if points is not None else found


def require_points(settings: Settings, data: PreparedData) -> None:
    """Raises InputError if evaluation.points or select_on asks for points that the data do not have."""
    asked = settings.evaluation
    for name, value, needs in (
        ("points", asked.points, isinstance(asked.points, int)),
        ("select_on", asked.select_on, asked.select_on == "points"),
    ):
        if needs and not data.has_points:
            what = (
                f"evaluation.{name} is {value}, but {data.directory} was prepared by an earlier version without points"
            )
            raise InputError(f"{what}; prepare it again: {how_to_add_points(data.directory.name)}")

"""What MLflow runs to load the model (a model from code)."""

from mlflow.models import set_model

from pnfrec_dist.serving import Recommender

set_model(Recommender())

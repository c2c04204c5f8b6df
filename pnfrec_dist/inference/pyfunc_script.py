"""What MLflow runs to load the model (a model from code), with the code that was logged beside it."""

import sys
from pathlib import Path

from mlflow.models import set_model

package = Path(__file__).parent / "artifacts" / "exported" / "pnfrec_dist.zip"
if package.is_file():  # not while the model is being made
    sys.path.insert(0, str(package))

from pnfrec_dist.inference.pyfunc import ServedModel  # noqa: E402

set_model(ServedModel())

"""MLflow runs this to load the model (a model from code), with the package code that was logged with it."""

import sys
from pathlib import Path

from mlflow.models import set_model

package = Path(__file__).parent / "artifacts" / "exported" / "pnfrec_dist.zip"
if package.is_file():  # missing while the model is being written
    sys.path.insert(0, str(package))

from pnfrec_dist.inference.pyfunc import ServedModel  # noqa: E402

set_model(ServedModel())

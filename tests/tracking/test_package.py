import subprocess
import sys


def test_mlflow_is_told_to_be_quiet_before_it_is_imported() -> None:
    """Whichever module of the package comes first: MLflow reads these variables when it is imported."""
    code = """
import os, sys
import pnfrec_dist.tracking.logged_models
assert "mlflow" in sys.modules
print(os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["true", "false"]

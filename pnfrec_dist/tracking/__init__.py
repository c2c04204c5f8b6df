"""MLflow: one run per training, its records, the model registry."""

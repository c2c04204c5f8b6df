"""PySpark jobs: raw interaction logs -> a prepared data set (see pnfrec_dist/data/schema.py)."""

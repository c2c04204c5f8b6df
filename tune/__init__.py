"""Sweeps with Ray Tune: `python -m tune`."""

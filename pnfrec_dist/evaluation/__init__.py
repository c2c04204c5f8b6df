"""Ranking of held-out users, metrics, baselines, intervals."""

"""Trainings that are tracked, compared and reported."""

"""Prepared data set -> batches of tensors."""

"""Distributed training of sequential recommenders that learn from likes and dislikes (PNFRec, RecSys '25)."""

"""Uses of a trained model: lists for all users, cards, serving over HTTP, export."""

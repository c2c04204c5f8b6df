"""What a trained model is used for: lists, cards, serving, export."""

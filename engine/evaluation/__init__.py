"""From a trained model to its predictions and scores."""

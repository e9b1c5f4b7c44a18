"""What a model can learn: the batches and the evaluation of each task, and how a trained model answers."""

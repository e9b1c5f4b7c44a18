"""What a model can learn: for each task, its batches, its evaluation, and how a trained model answers."""

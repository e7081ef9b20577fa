"""Training: data, autoencoder and FAR training, evaluation."""

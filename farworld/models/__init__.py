"""FAR transformer, DC-AE autoencoder, flow matching and the key-value cache."""

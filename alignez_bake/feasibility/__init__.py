"""When does it work: what a base's personas, pairs and activations say before anything is edited."""

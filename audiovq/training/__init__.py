"""Training: from a recipe and manifests to a run's folder, and from that to a model."""

"""LightningModules: network, loss and metrics of each task."""

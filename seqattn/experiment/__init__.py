"""Experiments: typed configuration, run directories and the Trainer, between the command line and the tasks."""

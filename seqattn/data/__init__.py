"""Readers, datasets and Lightning data modules."""

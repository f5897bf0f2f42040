"""Irregular health records: readers, schema, notes, batches."""

"""Adapters on disk: read, checked, imported, fetched."""

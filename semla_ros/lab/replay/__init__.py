"""Replay of recordings through pipelines."""

"""Recordings: read, write, salvage, frames."""

"""Procedural street scenes with exact masks and continuous weather."""

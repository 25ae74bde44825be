"""Labelled images on disk: benchmark files, the layouts and encodings of data sets."""

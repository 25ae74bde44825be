"""The ten data sets of the published benchmark and its 20 domains, read from their own folder layouts."""

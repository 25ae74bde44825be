"""Benchmarks: each compares with a peer or a floor in the same run; `semla bench` runs them."""

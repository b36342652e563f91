"""Benchmarks: figures of this machine at this moment, each beside a baseline of the same run. ``make bench`` runs them."""

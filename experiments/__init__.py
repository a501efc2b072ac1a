"""Experiments: `python3 -m experiments` lists them."""

"""The experiments; `python3 -m experiments` lists them."""

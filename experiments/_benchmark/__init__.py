"""The measurements of `python3 -m experiments benchmark`, a file for each idea."""

"""What `python3 -m experiments benchmark` measures, a file for each idea."""

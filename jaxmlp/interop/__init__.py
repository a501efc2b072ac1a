"""Other libraries: their weights to and from jaxmlp, and files that others run."""

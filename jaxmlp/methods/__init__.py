"""Methods made of starts, maps and readouts of a trace: K-FAC, Levenberg-Marquardt, influence, Laplace; and mu-P."""

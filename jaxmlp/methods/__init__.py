"""Methods that are a start, a map and a readout of a trace: K-FAC, Levenberg-Marquardt, influence, Laplace."""

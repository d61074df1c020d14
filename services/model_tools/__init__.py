"""From a trained model to a package that may be served: export, quantise, validate, benchmark, publish."""

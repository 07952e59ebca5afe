"""The training loop, resume, averaged weights, and perturbation while training. Components take their `fit` from here."""

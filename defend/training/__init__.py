"""Training: the loop, resume files, averaged weights, perturbations of training images.

Components take their `fit` from this package.
"""

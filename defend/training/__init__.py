"""Training: the loop, resume files, averaged weights, perturbations of training images.

Components take their `recipe` from this package.
"""

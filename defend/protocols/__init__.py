"""Versioned protocols: what is run for a claim, and what a claim needs."""

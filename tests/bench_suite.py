"""A small suite on embedded data, which several tests of the bench run."""

SMALL = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "defenses": ["none", "gaussian:sigma=0.1"],
    "attacks": ["pgd:steps=3"],
    "eps": "0.1,0.2",
    "n": 48,
    "shard": 16,
    "eot": 2,
    "draws": 5,
}


def without_times(records):
    """Return records without what differs from run to run."""
    return [r.replace(seconds=None, purify_images_per_second=None) for r in records]

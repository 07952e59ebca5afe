"""What a claim needs of its images, so that no choice of the images can make one.

docs/adr/0012-claims-count-distinct-images.md gives the reasons for these numbers.
"""

from __future__ import annotations

from defend.protocols.evidence import MIN_IMAGES
from defend.records import Record

MIN_CLUSTERS = 500  # things that the images show: at 50 % they give an interval of +-4.4 points
LEAST_CLASSES = 2
LEAST_P = 0.001  # of a class that is above its share in training


def tells_of_its_images(record: Record) -> bool:
    """Return True if the record says which images repeat; those of older versions do not."""
    return record.sample is not None


def has_distinct_images(record: Record) -> bool:
    """Return True if at least 1,000 images differ; of fewer images all must.

    That there are fewer is another requirement. So are those of the next functions.
    """
    return record.sample is None or record.sample.distinct >= min(record.n, MIN_IMAGES)


def shows_enough_things(record: Record) -> bool:
    """Return True if the images show at least 500 things; of fewer than 1,000, one for every two.

    Copies and near copies show the same thing.
    """
    needed = MIN_CLUSTERS * min(record.n, MIN_IMAGES) / MIN_IMAGES
    return record.sample is None or record.distinct_images >= needed


def shows_several_classes(record: Record) -> bool:
    """Return True if the images are of at least two classes."""
    if record.sample is None:
        return True
    classes = record.sample.classes
    return classes is not None and classes.present >= LEAST_CLASSES


def has_classes_as_in_training(record: Record) -> bool:
    """Return True if chance explains the share of each class."""
    classes = record.sample.classes if record.sample else None
    return classes is None or classes.p >= LEAST_P

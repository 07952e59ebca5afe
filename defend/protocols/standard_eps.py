"""The eps at which claims on a data set are compared with those of others.

A data set names its claim eps on its card, and that of a plugin may name any.
"""

from __future__ import annotations

from collections.abc import Mapping

from defend.eps import same_eps
from defend.spec import parse_single

# (data set, norm) -> eps. Of MNIST: arXiv:1706.06083; of CIFAR-10: arXiv:2010.09670; of Kodak's
# images: arXiv:2112.08691. Of the others there is no benchmark, and this project fixes them here.
STANDARD_EPS: Mapping[tuple[str, str], float] = {
    ("mnist", "Linf"): 0.3,
    ("fashion-mnist", "Linf"): 0.1,
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("digits", "Linf"): 0.2,
    ("digits-m", "Linf"): 16 / 255,
    ("faces", "Linf"): 4 / 255,
    ("kodak", "Linf"): 16 / 255,
}
HOME_PREFIX = "defend/"  # of the full names of what this package ships


def is_standard_eps(dataset: str, norm: str, eps: float) -> bool:
    """Return True if claims on this data set, a spec, are made at this eps.

    No bare name can be another package's (`defend.registry`).
    """
    name = parse_single(dataset, "dataset").name.removeprefix(HOME_PREFIX)
    standard = STANDARD_EPS.get((name, norm))
    return standard is not None and same_eps(eps, standard)

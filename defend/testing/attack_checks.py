"""The conformance kit of attacks. Each check takes one attack and asserts one property.

The checks are small on purpose: they run on a CPU, on eight 3x8x8 images and a linear classifier.
"""

from __future__ import annotations

from collections.abc import Iterator

from defend.testing import (
    attack_contract_checks,
    attack_query_checks,
    attack_settings_checks,
    attack_strength_checks,
)

# Every check is public under the name of this module too.
from defend.testing.attack_contract_checks import *  # noqa: F403
from defend.testing.attack_query_checks import *  # noqa: F403
from defend.testing.attack_settings_checks import *  # noqa: F403
from defend.testing.attack_setup import Jitter as Jitter
from defend.testing.attack_strength_checks import *  # noqa: F403
from defend.testing.runner import ConformanceCheck, checks_defined_in


def attack_checks() -> Iterator[ConformanceCheck]:
    """Yield every check of an attack."""
    yield from checks_defined_in(
        attack_contract_checks,
        attack_strength_checks,
        attack_query_checks,
        attack_settings_checks,
    )

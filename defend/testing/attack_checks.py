"""The conformance kit of attacks. Each check takes one attack and asserts one property.

The checks are small on purpose: they run on a CPU, on eight 3x8x8 images and a linear classifier.
"""

from __future__ import annotations

from collections.abc import Iterator

from defend.testing import (
    attack_contract_checks,
    attack_objective_checks,
    attack_query_checks,
    attack_settings_checks,
    attack_strength_checks,
    attack_target_checks,
)
from defend.testing.attack_contract_checks import (
    check_batch_mates_do_not_matter,
    check_eps_zero_returns_the_input,
    check_keeps_shape_dtype_and_order,
    check_leaves_input_and_global_rng_alone,
    check_leaves_the_model_alone,
    check_order_does_not_matter,
    check_same_seed_same_result,
    check_stays_in_the_ball,
    check_stays_in_the_box,
)
from defend.testing.attack_objective_checks import (
    check_climbs_the_loss_of_its_task,
    check_makes_a_reconstruction_wrong,
    check_refuses_a_task_without_its_objective,
)
from defend.testing.attack_query_checks import (
    check_a_sweep_gives_what_each_eps_gives_alone,
    check_counts_are_what_the_model_saw,
    check_needs_no_more_than_its_access,
)
from defend.testing.attack_settings_checks import (
    check_card_names_a_source,
    check_fields_are_keyword_only_and_without_eps,
    check_refuses_an_unknown_norm,
    check_settings_are_json,
    check_settings_rebuild_it,
)
from defend.testing.attack_setup import (
    Jitter,
)
from defend.testing.attack_strength_checks import (
    check_breaks_an_undefended_classifier,
    check_every_image_is_attacked_to_the_end,
    check_large_eps_drives_accuracy_to_chance,
    check_more_eps_never_helps_the_defender,
    check_more_steps_never_help_the_defender,
    check_moves_away_from_the_label,
    check_never_returns_the_clean_image,
    check_targeted_mode_hits_the_target,
)
from defend.testing.attack_target_checks import check_targeted_comes_closer_to_its_target
from defend.testing.runner import ConformanceCheck, checks_defined_in

# Every check is public under the name of this module too.
__all__ = [
    "Jitter",
    "check_a_sweep_gives_what_each_eps_gives_alone",
    "check_batch_mates_do_not_matter",
    "check_breaks_an_undefended_classifier",
    "check_card_names_a_source",
    "check_climbs_the_loss_of_its_task",
    "check_counts_are_what_the_model_saw",
    "check_eps_zero_returns_the_input",
    "check_every_image_is_attacked_to_the_end",
    "check_fields_are_keyword_only_and_without_eps",
    "check_keeps_shape_dtype_and_order",
    "check_large_eps_drives_accuracy_to_chance",
    "check_leaves_input_and_global_rng_alone",
    "check_leaves_the_model_alone",
    "check_makes_a_reconstruction_wrong",
    "check_more_eps_never_helps_the_defender",
    "check_more_steps_never_help_the_defender",
    "check_moves_away_from_the_label",
    "check_needs_no_more_than_its_access",
    "check_never_returns_the_clean_image",
    "check_order_does_not_matter",
    "check_refuses_a_task_without_its_objective",
    "check_refuses_an_unknown_norm",
    "check_same_seed_same_result",
    "check_settings_are_json",
    "check_settings_rebuild_it",
    "check_stays_in_the_ball",
    "check_stays_in_the_box",
    "check_targeted_comes_closer_to_its_target",
    "check_targeted_mode_hits_the_target",
    "list_checks",
]


def list_checks() -> Iterator[ConformanceCheck]:
    """Yield every check of an attack."""
    yield from checks_defined_in(
        attack_contract_checks,
        attack_strength_checks,
        attack_query_checks,
        attack_objective_checks,
        attack_settings_checks,
        attack_target_checks,
    )

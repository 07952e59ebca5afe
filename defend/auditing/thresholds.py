"""All thresholds of the audit, each with its source.

The miss and false-alarm rates in docs/audit-rates.md hold for these numbers: after changing one,
measure the rates again with docs/results/audit_thresholds.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """A number to compare a measured value with, and where the number comes from."""

    value: float
    source: str


_MEASURED = "ours; docs/results/audit_thresholds.py measures it on tests/masked.py"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Shares are of images, between 0 and 1, unless a comment names another unit."""

    # Percentage points
    gap: Threshold = Threshold(
        2.0, "ours: points that another attack must break more than the declared gradient's best"
    )
    suspicious: Threshold = Threshold(
        5.0, "ours: points that no verdict passes over, though they are not significant"
    )
    converged: Threshold = Threshold(0.5, "ours: points that more steps may still break")
    eot: Threshold = Threshold(1.0, "ours: points that twice the copies may still break")
    rounding: Threshold = Threshold(1.0, "ours: points by which 8-bit images may differ")

    # Significance levels
    alpha: Threshold = Threshold(0.05, "convention; Holm over the attacks (Holm 1979)")
    rekeyed: Threshold = Threshold(0.01, "ours: level of the paired test")

    # Gradients
    unbounded: Threshold = Threshold(
        0.01, "Carlini et al., arXiv:1902.06705, section 5: an unbounded attack leaves nothing"
    )
    zero: Threshold = Threshold(
        0.01, _MEASURED + "; AutoAttack (arXiv:2003.01690) flags the first image"
    )
    vanishing: Threshold = Threshold(1e-3, _MEASURED)  # ratio of L1 norms
    exploding: Threshold = Threshold(1e3, _MEASURED)  # ratio of L1 norms
    dead: Threshold = Threshold(0.25, _MEASURED)  # share of pixels
    cosine: Threshold = Threshold(0.05, _MEASURED)
    replayed_cosine: Threshold = Threshold(
        0.99, "ours: a deterministic gradient is the same twice, up to rounding"
    )
    frozen: Threshold = Threshold(  # share of the clean accuracy
        0.5,
        "ours: a pixel that frozen noise clips has no gradient, so some images may resist",
    )
    slope: Threshold = Threshold(0.2, _MEASURED)  # correlation
    ground: Threshold = Threshold(  # correlation, above which a verdict may rest on a gradient
        0.4, "ours: the identity past noise and a restorer has 0.2 to 0.3; honest gradients more"
    )
    image_slope: Threshold = Threshold(0.2, "ours: of a single image")  # correlation
    image_share: Threshold = Threshold(  # share of images that reach image_slope
        0.8, "ours: a gradient may be right on the other images alone"
    )
    control: Threshold = Threshold(  # share of what stands at eps that must break at 2 eps
        0.5, "ours: an attack that finds nothing at 2 eps either may be unable to find anything"
    )
    imitation: Threshold = Threshold(  # relative error, below which a verdict may rest on a network
        0.3, "ours; a network that changes nothing has 1"
    )

    # State and randomness
    moved: Threshold = Threshold(  # pixel values
        1e-3, "ours: a quarter of 1/255, the smallest step that an 8-bit image can show"
    )
    state: Threshold = Threshold(
        0.05, "ours: images that rounding alone may move across a quantisation boundary"
    )

    # Signs of a failed attack
    square: Threshold = Threshold(0.2, "AutoAttack's flag, flags_doc.md of arXiv:2003.01690")
    unstable: Threshold = Threshold(
        0.5, _MEASURED + "; the indicator is Pintor et al., arXiv:2106.09947"
    )
    incomplete: Threshold = Threshold(0.05, "Pintor et al., arXiv:2106.09947, section 3")
    indicator: Threshold = Threshold(0.1, _MEASURED + ": share of images")
    active: Threshold = Threshold(
        0.8, _MEASURED + "; Zimmermann et al., arXiv:2206.13991, give no pass mark"
    )
    search: Threshold = Threshold(
        0.5,
        "Zimmermann et al., arXiv:2206.13991: random search must fail where the attack succeeds;"
        " the number is ours",
    )


THRESHOLDS = Thresholds()

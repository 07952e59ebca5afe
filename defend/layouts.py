"""The fastest float32 layout of a purifier's networks on this CPU, measured when it is loaded.

A bench and an audit set the layout themselves, so what is chosen here enters no key and no record.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from defend.learned import set_layout
from defend.numerics import Candidate, candidates, choose_once, fastest
from defend.winograd import eligible

IMAGES, SIZE = 4, 32  # of the measured batch


def choose_layout(net: nn.Module) -> str:
    """Return the layout in which the largest eligible convolution of a network takes least time.

    It is "contiguous", unmeasured, for a network without convolutions that Winograd's algorithm can
    compute. Other networks are not run: the convolution alone takes a fraction of a second.
    """
    convolutions = eligible(net)
    if not convolutions:
        return "contiguous"
    largest = max(convolutions, key=lambda convolution: convolution.weight.numel())
    channels = [largest.in_channels, largest.out_channels]
    facts = {"convolution": channels, "threads": torch.get_num_threads()}
    return choose_once(facts, lambda: _measure(largest)).layout


@torch.no_grad()
def _measure(convolution: nn.Conv2d) -> Candidate:
    """Return the fastest layout of a copy of the convolution."""
    options = candidates("float32", "auto", has_winograd=True)
    copies = {option: copy.deepcopy(convolution) for option in options}
    for option, network in copies.items():
        set_layout(network, option.layout)
    x = torch.zeros(IMAGES, convolution.in_channels, SIZE, SIZE)
    return fastest(options, lambda option: copies[option](x), torch.device("cpu"))

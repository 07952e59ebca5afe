"""Fold batch norms into the convolutions before them, so that inference does not pay for them."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(net: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a network that computes the same function up to rounding, in eval mode, with folded
    batch norms.

    Return the network itself if nothing can be folded, if it cannot be traced, or if the trace
    gives other logits or another gradient at the images `example`: Python code in `forward` may do
    anything, and a trace drops custom backward passes and what stands under `no_grad`.
    """
    if not _count_norms(net):
        return net
    try:
        folded = _fold_traced(fx.symbolic_trace(copy.deepcopy(net)))
        unchanged = _agree(folded, net, example)
    except Exception:  # the forward of a foreign network may raise anything when it is traced
        return net
    return folded if unchanged and _count_norms(folded) < _count_norms(net) else net


def _agree(folded: nn.Module, net: nn.Module, x: torch.Tensor) -> bool:
    """Return True if both networks give the same logits and the same gradient at x, up to 0.1 %."""
    measured = _logits_and_gradient(folded, x)
    expected = _logits_and_gradient(net, x)
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
        for a, b in zip(measured, expected, strict=True)
    )


def _logits_and_gradient(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


def _count_norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def _fold_traced(traced: fx.GraphModule) -> fx.GraphModule:
    """Fold every BatchNorm2d whose input is a Conv2d that is called once and has no other user."""
    # torch.fx.experimental.optimization.fuse would be shorter, but it behaves differently: it fuses
    # 1d, 3d and linear layers too, skips subclasses of Conv2d, and folds every norm that follows
    # into a convolution that is called several times, so that the comparison would reject the whole
    # network.
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    norms = [node for node in traced.graph.nodes if _calls(node, modules, nn.BatchNorm2d)]
    for norm in norms:
        conv = norm.args[0]
        if _calls(conv, modules, nn.Conv2d) and calls[conv.target] == len(conv.users) == 1:
            fused = fuse_conv_bn_eval(modules[conv.target], modules[norm.target])
            traced.set_submodule(conv.target, fused.requires_grad_(False))
            norm.replace_all_uses_with(conv)
            traced.graph.erase_node(norm)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _calls(node: fx.Node, modules: dict[str, nn.Module], module_type: type[nn.Module]) -> bool:
    """Return True if a node of the graph calls a module of this type."""
    return node.op == "call_module" and isinstance(modules[str(node.target)], module_type)

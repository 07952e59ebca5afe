"""What learned purifiers and classifiers share: networks built from fields, filled from named weights, frozen, in eval mode."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from typing import Any, ClassVar, dataclass_transform

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from defend import weights as store
from defend.errors import BadWeights, one_line
from defend.registry import REGISTRY, Kind
from defend.spec import Configured


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def arrange(net: nn.Module, layout: str) -> None:
    """Parameters in "contiguous" or "channels_last" order: convolutions follow their weights."""
    net.to(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )  # type: ignore[call-overload]


def folded(net: nn.Module, example: torch.Tensor) -> nn.Module:
    """The same function up to rounding, in eval mode: batch norms are folded into the convolutions before them, and cost nothing more.

    The network itself where nothing can be folded, where it cannot be traced, or where the trace gives other logits of `example` or
    another gradient: Python in `forward` may do anything, and a trace forgets custom backwards and what stands under `no_grad`.
    """
    if not _norms(net):
        return net
    try:
        made = _fold(fx.symbolic_trace(copy.deepcopy(net)))
        ours, wanted = (_logits_and_slope(m, example) for m in (made, net))
        same = all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
            for a, b in zip(ours, wanted, strict=True)
        )
    except Exception:  # whatever stands in the forward of a stranger's network
        return net
    return made if same and _norms(made) < _norms(net) else net


def _logits_and_slope(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


def _norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def _fold(traced: fx.GraphModule) -> fx.GraphModule:
    of = dict(traced.named_modules())
    called = Counter(n.target for n in traced.graph.nodes if n.op == "call_module")
    for node in [
        n
        for n in traced.graph.nodes
        if n.op == "call_module" and isinstance(of[n.target], nn.BatchNorm2d)
    ]:
        conv = node.args[0]
        if (
            conv.op == "call_module"
            and isinstance(of[conv.target], nn.Conv2d)
            and called[conv.target] == len(conv.users) == 1
        ):
            traced.set_submodule(
                conv.target,
                fuse_conv_bn_eval(of[conv.target], of[node.target]).requires_grad_(False),
            )
            node.replace_all_uses_with(conv)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class Frozen(nn.Module):
    """In eval mode whatever `train()` says, its parameters without gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.precision = "float32"
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.precision == "float32":
            return self.net(x)  # type: ignore[no-any-return]
        with autocast(x.device, self.precision):
            return self.net(x).to(x.dtype)  # type: ignore[no-any-return]


class Lowered(nn.Module):
    """A network computed in bfloat16 where that is sound (convolutions, matrices), and left as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net = [net]  # no child: modes and layouts stay the owner's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device, "bfloat16"):
            return self._net[0](x).to(x.dtype)  # type: ignore[no-any-return]


@dataclass_transform(kw_only_default=True, eq_default=False)
class Learned(Configured):
    """Abstract. `weights`: "auto" (the zoo's default for the component, the data set and the given fields), a name, a path, or
    "untrained". Given a name or a path, fields that were not set come from the file's header."""

    kind: ClassVar[Kind]
    weights: str = "auto"
    dataset: str | None = None  # what "auto" looks for; says nothing about what is computed
    fitted_on = "untrained"  # set by `fit`: "clean", "corrupted" or "adversarial(...)"

    def __new__(cls, **given: Any) -> Any:
        made = super().__new__(cls)
        made.__dict__["_given"] = dict(given)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {}

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, as the fields say. Its initial weights may be random: the generator is seeded."""

    def fit(self, x: Any, y: Any = None, **recipe: Any) -> None:
        """Train on images x (n, c, h, w) in [0, 1] with labels y (n,), or on a Stream. Components take theirs from `defend.training`."""
        raise BadWeights(f"{type(self).__name__} has no recipe for training; load weights instead")

    def _adopt(self) -> None:
        """Fields from the header; before `validate`."""
        self.file: store.WeightsFile | None = None
        if self.weights == "untrained":
            return
        own = type(self).fields()
        given = {k: v for k, v in self.__dict__["_given"].items() if k in own and k != "weights"}
        self.file = store.find(self.kind, self.component, self.weights, self.dataset, given)
        self.weights = self.file.name
        for name in own.keys() - given.keys() - {"weights"}:
            if name in self.file.header.fields:
                setattr(self, name, self.file.header.fields[name])

    def _build(self) -> Frozen:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.build()
        if self.file is not None:
            try:
                net.load_state_dict(store.load(self.file.path))
            except RuntimeError as e:
                raise BadWeights(
                    f"{self.file.name}: does not fit {type(self).__name__}({self.settings}): {one_line(e)[:200]}"
                ) from None
        return Frozen(net)

    @property
    def component(self) -> str:
        return REGISTRY.component(self.kind, type(self))

    @property
    def trained_on(self) -> str:
        return self.file.header.trained_on if self.file else self.fitted_on

    @property
    def weights_sha256(self) -> dict[str, str]:
        return {self.file.name: self.file.sha256} if self.file else {}

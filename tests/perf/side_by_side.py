"""Programs that do the same work side by side: plain PyTorch, plain ART, and `defend bench`.

Every function returns the seconds that one program took, and what it measured, so that a ratio is
only ever printed beside equal accuracies.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import defend
from defend.noise import Noise

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The same images, classifier and budgets for every program."""

    dataset: str
    classifier: str
    n: int
    epsilons: tuple[float, ...]
    defenses: tuple[str, ...] = ("none",)
    device: str = "cpu"

    def images(self) -> tuple[Tensor, Tensor]:
        """Return the first n test images with their labels."""
        return defend.load(self.dataset, "dataset").rows("test", 0, self.n)

    def network(self) -> nn.Module:
        """Return the classifier as it loads, for programs without a bench."""
        classifier = defend.load(self.classifier, "classifier", self.dataset, device=self.device)
        return classifier.network


@dataclass
class Run:
    """What one program took and measured."""

    seconds: float = 0.0
    accuracies: dict[str, float] = field(default_factory=dict)
    forwards: float = 0.0  # for each image, counted at the network
    backwards: float = 0.0


def clock(device: str) -> float:
    """Return CPU seconds of this process on a CPU, and seconds of the wall on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def timed(run: Run, device: str) -> Iterator[None]:
    """Add the block's seconds to the run."""
    start = clock(device)
    yield
    run.seconds += clock(device) - start


def shares(right: dict[str, list[Tensor]]) -> dict[str, float]:
    """Return name -> accuracy, from batches of right and wrong."""
    return {name: float(torch.cat(batches).double().mean()) for name, batches in right.items()}


def plain_fgsm(work: Workload) -> Run:
    """One gradient for each batch, and a forward pass for each eps."""
    (x, y), net, run = work.images(), work.network(), Run()
    right: dict[str, list[Tensor]] = {f"{eps:g}": [] for eps in work.epsilons}
    with timed(run, work.device):
        for xb, yb in _batches(x, y, work.device):
            leaf = xb.clone().requires_grad_()
            loss = nn.functional.cross_entropy(net(leaf), yb, reduction="sum")
            sign = torch.autograd.grad(loss, leaf)[0].sign()
            with torch.no_grad():
                clean = net(xb).argmax(1) == yb
                for eps in work.epsilons:
                    x_adv = (xb + eps * sign).clamp(0, 1)
                    right[f"{eps:g}"].append(clean & (net(x_adv).argmax(1) == yb))
        run.accuracies = shares(right)
    return run


def plain_pgd(work: Workload, steps: int, adaptive: bool) -> Run:
    """PGD from a random start; every image takes every step."""
    (x, y), net, run = work.images(), work.network(), Run()
    purifiers = {d: defend.load(d, device=work.device).as_module() for d in work.defenses}
    right: dict[str, list[Tensor]] = {}
    with timed(run, work.device):
        for first, (xb, yb) in enumerate(_batches(x, y, work.device)):
            start = first * BATCH
            noise = Noise.of(0, torch.arange(start, start + len(xb), device=xb.device))
            for eps in work.epsilons:
                if not adaptive:
                    x_adv = _pgd(net, xb, yb, eps, steps, noise)
                for defense, purifier in purifiers.items():
                    pipeline = nn.Sequential(purifier, net)
                    if adaptive:
                        x_adv = _pgd(pipeline, xb, yb, eps, steps, noise)
                    with torch.no_grad():
                        clean = pipeline(xb).argmax(1) == yb
                        ok = clean & (pipeline(x_adv).argmax(1) == yb)
                    right.setdefault(f"{defense} {eps:g}", []).append(ok)
        run.accuracies = shares(right)
    return run


def _pgd(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, noise: Noise) -> Tensor:
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = low + (high - low) * noise.again().uniform(x)
    for _ in range(steps):
        leaf = x_adv.requires_grad_()
        loss = nn.functional.cross_entropy(net(leaf), y, reduction="sum")
        step = 2.5 * eps / steps * torch.autograd.grad(loss, leaf)[0].sign()
        x_adv = torch.min(torch.max(leaf.detach() + step, low), high)
    return x_adv


def _batches(x: Tensor, y: Tensor, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    size = BATCH if device == "cpu" else 4096
    for xb, yb in zip(x.split(size), y.split(size), strict=True):
        yield xb.to(device), yb.to(device)


def plain_art(work: Workload, attack: Callable[[Any, float], Any], adaptive: bool) -> Run:
    """A PyTorchClassifier for each defense, `generate`, `predict`; ART's own batches."""
    from art.estimators.classification import PyTorchClassifier

    x, y = (tensor.numpy() for tensor in work.images())
    net, run = work.network(), Run()

    def estimator(defense: str) -> Any:
        purifier = None if defense == "none" else defend.load(defense, device=work.device)
        return PyTorchClassifier(
            net,
            nn.CrossEntropyLoss(),
            x.shape[1:],
            10,
            clip_values=(0, 1),
            preprocessing_defences=purifier,
            device_type="cpu" if work.device == "cpu" else "gpu",
        )

    estimators = {defense: estimator(defense) for defense in work.defenses}
    bare = estimator("none")
    with timed(run, work.device):
        clean = {d: e.predict(x, batch_size=BATCH).argmax(1) == y for d, e in estimators.items()}
        for eps in work.epsilons:
            if not adaptive:
                x_adv = attack(bare, eps).generate(x, y)
            for defense, target in estimators.items():
                if adaptive:
                    x_adv = attack(target, eps).generate(x, y)
                right = target.predict(x_adv, batch_size=BATCH).argmax(1) == y
                run.accuracies[f"{defense} {eps:g}"] = float(np.mean(clean[defense] & right))
    return run


class Counter:
    """Counts images that pass through the frozen classifiers of a block."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count every network evaluation of the bench inside the block."""
        from defend.learned import Frozen

        forward = Frozen.forward

        def counted(network: Any, x: Tensor) -> Tensor:
            self.forwards += len(x)
            out = forward(network, x)
            if out.requires_grad:
                out.register_hook(self._count_backward)
            return out

        Frozen.forward = counted  # type: ignore[method-assign]
        try:
            yield
        finally:
            Frozen.forward = forward  # type: ignore[method-assign]

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def run_bench(work: Workload, attack: str, knowledge: Sequence[str], **keys: Any) -> Run:
    """Return what `defend bench` took in one process, without its report."""
    run, counter = Run(), Counter()
    with tempfile.TemporaryDirectory() as folder, counter.counting(), timed(run, work.device):
        records = defend.bench(
            dataset=work.dataset,
            classifiers=[work.classifier],
            defenses=list(work.defenses),
            attacks=[attack],
            knowledge=list(knowledge),
            eps=list(work.epsilons),
            n=work.n,
            device=work.device,
            workers=1,
            out=Path(folder),
            **keys,
        )
    failed = [record.error for record in records if record.failed]
    assert not failed, failed
    for record in records:
        run.accuracies[f"{record.defense} {record.eps:g}"] = float(record.robust_accuracy or 0)
    run.forwards, run.backwards = counter.forwards / work.n, counter.backwards / work.n
    return run


def largest_difference(a: Run, b: Run) -> float:
    """Return the largest difference of accuracies that both runs measured, in points."""
    both = a.accuracies.keys() & b.accuracies.keys()
    if not both:
        both_values = zip(a.accuracies.values(), b.accuracies.values(), strict=True)
        return max(100 * abs(p - q) for p, q in both_values)
    return max(100 * abs(a.accuracies[name] - b.accuracies[name]) for name in both)

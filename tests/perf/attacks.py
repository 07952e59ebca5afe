"""Compare attacks with reference implementations: robust accuracy on the same images, and time.

The references are AutoAttack's own code (`pip install --no-deps pyautoattack==0.2.0`), and ART's
SquareAttack and AutoProjectedGradientDescent. Each runs as its documentation says. Ours run in the
layout and with the batch size that are fastest on this machine, with batch norms folded, as `defend
bench` does for layout and norms (`--as-is`: the network as it is, contiguous, batches of 256). With
a defense, all differentiate the same pipeline through its declared gradient. The attacks take
turns in one run. The script prints, and asserts nothing.

    python tests/perf/attacks.py --dataset mnist --classifier convnet --n 1000 --time-n 200
    python tests/perf/attacks.py --dataset mnist --defense bitdepth --parts autoattack
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import defend
from defend.classifier import Classifier
from defend.noise import Noise
from defend.purifier import Purifier
from defend.spec import read_value
from defend.stats import difference
from defend.target import Target

PARTS = ("autoattack", "autoattack-bfloat16", "square", "apgd")
BATCH = 256  # images in a forward pass that scores
TRIALS = 4  # of the time of one forward and backward pass

# Attacks the first n images. Returns them, and the number of forward passes for each image.
RunAttack = Callable[[int], tuple[Tensor, float]]


class CountingModel(nn.Module):
    """A model that counts the images in its forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.model(x)


@dataclass
class NamedAttack:
    name: str
    run: RunAttack


@dataclass
class Measurement:
    part: str
    attack: str
    n: int
    is_right: list[bool]
    forwards: float  # forward passes for each image
    wall_seconds: float
    cpu_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the row of the `--json` file. Its keys are those of docs/results/attacks.json."""
        return {
            "what": self.part,
            "who": self.attack,
            "n": self.n,
            "right": "".join(str(int(right)) for right in self.is_right),
            "evaluations": self.forwards,
            "wall": self.wall_seconds,
            "cpu": self.cpu_seconds,
        }


@dataclass
class Workbench:
    """Hold the images, and the pipeline in the form that each implementation attacks."""

    classifier: nn.Module  # contiguous: attacked by the references, and used to score everybody
    purifier: Purifier
    our_classifier: nn.Module  # the same network in the fastest layout
    our_purifier: Purifier  # the same purifier with the fastest batch size
    x: Tensor
    y: Tensor
    eps: float
    norm: str
    queries: int
    seed: int

    @property
    def pipeline(self) -> nn.Module:
        return nn.Sequential(self.purifier.as_module(), self.classifier)

    def score(self, x_adv: Tensor) -> list[bool]:
        """Return which images are right both clean and attacked. Warn if one left the eps ball."""
        x, y = self.x[: len(x_adv)], self.y[: len(x_adv)]
        self._warn_outside_ball(x_adv - x)
        is_right = (self._predict(x) == y) & (self._predict(x_adv) == y)
        return [bool(right) for right in is_right]

    def _warn_outside_ball(self, d: Tensor) -> None:
        flat = d.double().flatten(1)
        size = flat.abs().amax(1) if self.norm == "Linf" else flat.norm(dim=1)
        if (size > self.eps + 1e-5).any():
            message = f"left the ball: eps {self.eps:.6g}, measured {float(size.max()):.6g}"
            warnings.warn(message, stacklevel=3)

    @torch.no_grad()
    def _predict(self, x: Tensor) -> Tensor:
        return torch.cat([self.pipeline(part).argmax(1) for part in x.split(BATCH)])

    def run_ours(self, spec: str, n: int) -> tuple[Tensor, float]:
        noise = Noise.of(self.seed, torch.arange(n))
        target = Target(self.our_classifier, self.our_purifier, noise.fork("attack"), scored=True)
        attack = defend.load(spec, "attack", norm=self.norm)
        x_adv = attack.run(target, self.x[:n], self.y[:n], self.eps, noise.fork("start"))
        return x_adv, target.counts["forwards"] / n

    def run_pyautoattack(self, n: int) -> tuple[Tensor, float]:
        from pyautoattack import AutoAttack

        model = CountingModel(self.pipeline)
        attack = AutoAttack(model, norm=self.norm, eps=self.eps, seed=self.seed)
        x_adv = attack.run_standard_evaluation(self.x[:n], self.y[:n])[0].detach()
        return x_adv, model.images / n

    def run_art(self, name: str, n: int, **fields: object) -> tuple[Tensor, float]:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        model = CountingModel(self.pipeline)
        estimator = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(self.x.shape[1:]),
            int(self.y.max()) + 1,
            clip_values=(0, 1),
            preprocessing=None,
            device_type="cpu",
        )
        np.random.seed(self.seed)
        norm = np.inf if self.norm == "Linf" else 2
        attack_class = getattr(evasion, name)
        attack = attack_class(estimator, norm=norm, eps=self.eps, verbose=False, **fields)
        x_adv = attack.generate(self.x[:n].numpy(), self.y[:n].numpy())
        return torch.from_numpy(x_adv), model.images / n


def choose_attacks(part: str, bench: Workbench) -> tuple[NamedAttack, NamedAttack]:
    """Return our attack and the reference."""
    queries = bench.queries
    if part == "square":
        return (
            NamedAttack(
                f"square, {queries} queries",
                lambda n: bench.run_ours(f"square:queries={queries}", n),
            ),
            NamedAttack(
                f"ART SquareAttack, max_iter={queries}",
                lambda n: bench.run_art(
                    "SquareAttack", n, max_iter=queries, nb_restarts=1, batch_size=250
                ),
            ),
        )
    if part == "apgd":
        fields = {
            "max_iter": 100,
            "eps_step": 2 * bench.eps,
            "nb_random_init": 1,
            "batch_size": 250,
            "loss_type": "cross_entropy",
        }
        return (
            NamedAttack("apgd, 100 steps", lambda n: bench.run_ours("apgd", n)),
            NamedAttack(
                "ART AutoPGD, max_iter=100",
                lambda n: bench.run_art("AutoProjectedGradientDescent", n, **fields),
            ),
        )
    spec = "autoattack" if part == "autoattack" else "autoattack:search=bfloat16"
    return (
        NamedAttack(spec, lambda n: bench.run_ours(spec, n)),
        NamedAttack("pyautoattack, standard", bench.run_pyautoattack),
    )


def measure(part: str, attack: NamedAttack, n: int, bench: Workbench) -> Measurement:
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    x_adv, forwards = attack.run(n)
    wall, cpu = time.perf_counter() - wall_start, time.process_time() - cpu_start
    return Measurement(part, attack.name, n, bench.score(x_adv), forwards, wall, cpu)


def measure_in_turns(part: str, n: int, turns: int, bench: Workbench) -> list[Measurement]:
    """Return the fastest measurement of our attack and of the reference, which take turns.

    Other work on the machine only adds to a time, so the least time counts.
    """
    attacks = choose_attacks(part, bench)
    measurements: list[list[Measurement]] = [[], []]
    for _ in range(turns):
        for attack, results in zip(attacks, measurements, strict=True):
            results.append(measure(part, attack, n, bench))
    return [min(results, key=lambda result: result.cpu_seconds) for results in measurements]


def print_comparison(ours: Measurement, reference: Measurement) -> None:
    for row in (ours, reference):
        print(
            f"  {row.attack:32} {np.mean(row.is_right):6.1%} right   "
            f"{row.forwards:8.0f} forward passes/image   "
            f"{row.wall_seconds:8.1f} s   {row.cpu_seconds:8.1f} s of CPU"
        )
    outcomes = (np.array(row.is_right, float) for row in (ours, reference))
    points, low, high = (100 * value for value in difference(*outcomes))
    wall_ratio = ours.wall_seconds / reference.wall_seconds
    cpu_ratio = ours.cpu_seconds / reference.cpu_seconds
    print(
        f"  ours - reference: {points:+.2f} points [{low:+.2f}, {high:+.2f}], paired, n = {ours.n};"
        f"  time {wall_ratio:.2f} of the reference (CPU time {cpu_ratio:.2f})",
        flush=True,
    )


def time_gradient(net: nn.Module, x: Tensor, batch: int) -> float:
    """Return the least CPU time of a forward and backward pass over x in such batches."""

    def time_once() -> float:
        start = time.process_time()
        for part in x.split(batch):
            z = part.clone().requires_grad_()
            torch.autograd.grad(net(z).logsumexp(1).sum(), z)
        return time.process_time() - start

    return min(time_once() for _ in range(TRIALS))


@dataclass
class Arrangement:
    """A network in a memory layout, and the batch size it is run with."""

    network: nn.Module
    layout: str
    batch: int


def find_fastest(classifier: Classifier, x: Tensor) -> Arrangement:
    """Return the classifier, batch norms folded, in its fastest layout and batch size."""
    repeats = -(-BATCH // len(x[:BATCH]))  # rounded up
    images = x[:BATCH].repeat(repeats, 1, 1, 1)[:BATCH]
    candidates = []
    for layout in ("contiguous", "channels_last"):
        folded = copy.deepcopy(classifier)
        folded.run_as("float32", layout)
        for batch in (32, 64, 128, 256):
            candidates.append(Arrangement(folded.network, layout, batch))
    return min(candidates, key=lambda c: time_gradient(c.network, images, c.batch))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--classifier", default="convnet")
    parser.add_argument("--defense", default="none")
    parser.add_argument("--norm", default="Linf", choices=("Linf", "L2"))
    parser.add_argument("--eps", help="number or fraction (default: the data set's claim eps)")
    parser.add_argument("--n", type=int, default=1000, help="images for the accuracies")
    parser.add_argument("--time-n", type=int, default=200, help="images for the times")
    parser.add_argument("--queries", type=int, default=1000, help="query budget of Square")
    parser.add_argument("--turns", type=int, default=1, help="turns; the least time counts")
    parser.add_argument("--seed", type=int, default=0, help="seed of both implementations")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--as-is", action="store_true", help="contiguous, batches of 256, nothing folded"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to which all rows are appended")
    return parser.parse_args()


def make_workbench(args: argparse.Namespace) -> Workbench:
    data = defend.load(args.dataset, "dataset")
    classifier = defend.load(args.classifier, "classifier", dataset=data)
    x, y = data.rows("test", 0, max(args.n, args.time_n))
    eps = float(read_value(args.eps)) if args.eps else data.card.claim[args.norm]
    if args.as_is:
        arrangement = Arrangement(classifier.network, "contiguous", BATCH)
    else:
        arrangement = find_fastest(classifier, x)
    our_purifier = defend.load(args.defense, dataset=data)
    our_purifier.max_batch = arrangement.batch
    print(f"{args.dataset}, {args.classifier}, {args.defense}, {args.norm} eps {eps:.4g}")
    print(f"torch {torch.__version__}, {args.threads} threads")
    print(f"ours: {arrangement.layout}, batches of {arrangement.batch}")
    return Workbench(
        classifier=classifier.network,
        purifier=defend.load(args.defense, dataset=data),
        our_classifier=arrangement.network,
        our_purifier=our_purifier,
        x=x,
        y=y,
        eps=eps,
        norm=args.norm,
        queries=args.queries,
        seed=args.seed,
    )


def append_to_json(file: Path, rows: list[Measurement]) -> None:
    """Append the command and its rows to the list in this file."""
    runs = json.loads(file.read_text()) if file.exists() else []
    command = " ".join(["python", "tests/perf/attacks.py", *sys.argv[1:]])
    runs.append({"command": command, "rows": [row.as_json() for row in rows]})
    file.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    bench = make_workbench(args)
    rows: list[Measurement] = []
    for part in args.parts:
        for n in dict.fromkeys((args.time_n, args.n)):  # once if both are equal
            print(f"{part}, n = {n}")
            pair = measure_in_turns(part, n, args.turns, bench)
            print_comparison(*pair)
            rows += pair
    if args.json:
        append_to_json(args.json, rows)


if __name__ == "__main__":
    main()

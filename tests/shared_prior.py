"""Learned purifiers around one network, for tests of architectures, uses and zoos."""

import torch
from torch import nn

from defend import Card, LearnedPurifier
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights

CARD = Card(paper="none: a test", gradient="exact", stochastic=False)
ARCHITECTURE = "test-prior"


class Prior(LearnedPurifier):
    """The part that both users of the prior share."""

    card = CARD
    width: int = 2
    levels: tuple[int, ...] = (1, 2)

    def build(self):
        return nn.Sequential(
            nn.Conv2d(1, self.width, 1), nn.Conv2d(self.width, len(self.levels), 1)
        )

    def purify(self, x, noise):
        return x


class Diffuse(Prior):
    """It names its architecture and two uses."""

    architecture = ARCHITECTURE
    uses = frozenset({"sigma", "steps"})
    sigma: float = 0.5
    steps: int = 10

    def purify(self, x, noise):
        return (1 - self.sigma) * x


class Restore(Prior):
    """Another use of the same network; its sigma means something else."""

    architecture = ARCHITECTURE
    uses = frozenset({"sigma"})
    sigma: float = 0.7


class Alone(Prior):
    """It names no architecture, so that its files are its own."""

    sigma: float = 0.5


TRAINED = {"width": 3, "levels": [1, 2, 4], "sigma": 0.3, "steps": 7}


def write_weights(path, component, architecture=ARCHITECTURE, **changes):
    """Write weights of a prior and return their path. changes: other fields of the header."""
    fields = {**TRAINED, **changes.pop("fields", {})}
    header = {
        "kind": "defense",
        "component": component,
        "architecture": architecture,
        "dataset": "digits",
        "fields": fields,
        "trained_on": TrainedOn(kind="clean"),
        "command": f"defend train defense {component} --dataset digits",
        "seed": 0,
        "commit": "",
    }
    torch.manual_seed(1)
    net = Diffuse(weights="untrained", width=fields["width"], levels=tuple(fields["levels"])).net
    save_weights(path, net.state_dict(), Header(**{**header, **changes}))
    return path


def register(folder, dist="prior-kit", weights=""):
    """Write the entry points of a package `dist` with these components into a folder.

    weights: the package of its zoo; none if empty.
    """
    info = folder / f"{dist.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    lines = ["[defend.defenses]"]
    lines += [f"{cls.__name__.lower()} = shared_prior:{cls.__name__}" for cls in COMPONENTS]
    lines += ["[defend.weights]", f"zoo = {weights}"] if weights else []
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
    return folder


COMPONENTS = (Diffuse, Restore, Alone)

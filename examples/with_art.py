"""A purifier in front of an ART classifier, attacked by ART itself.

The data is embedded. The example takes about ten seconds on a CPU.
"""

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

import defend

digits = defend.load("digits", "dataset")
x, y = (tensor.numpy() for tensor in digits.rows("test", 0, 100))
# Any torch module will do that returns logits for images in [0, 1].
model = defend.load("convnet", "classifier", "digits").network


def make_classifier(purifier: defend.Purifier | None) -> PyTorchClassifier:
    """Return the model as an ART classifier behind a purifier."""
    return PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(digits.channels, digits.size, digits.size),
        nb_classes=digits.classes,
        clip_values=(0.0, 1.0),
        preprocessing_defences=purifier,
        device_type="cpu",
    )


def accuracy(classifier: PyTorchClassifier, images: np.ndarray) -> float:
    """Return the share of images that are classified correctly."""
    return float((classifier.predict(images).argmax(1) == y).mean())


def attack(classifier: PyTorchClassifier) -> np.ndarray:
    """Return adversarial images against this classifier."""
    pgd = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.025, max_iter=10, verbose=False)
    images: np.ndarray = pgd.generate(x, y)
    return images


bare = make_classifier(None)
purified = make_classifier(defend.load("bitdepth:bits=2"))
oblivious = attack(bare)  # the attacker does not know the purifier
adaptive = attack(purified)  # ART differentiates through the purifier
print(f"clean       bare {accuracy(bare, x):4.0%}   purified {accuracy(purified, x):4.0%}")
print(
    f"oblivious   bare {accuracy(bare, oblivious):4.0%}"
    f"   purified {accuracy(purified, oblivious):4.0%}"
)
print(f"adaptive                purified {accuracy(purified, adaptive):4.0%}")

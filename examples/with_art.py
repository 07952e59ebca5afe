"""A purifier in front of an ART classifier, attacked by ART itself: embedded data, about ten seconds on a CPU."""

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

import defend

digits = defend.load("digits", "dataset")
x, y = (t.numpy() for t in digits.rows("test", 0, 100))
model = defend.load(
    "convnet", "classifier", "digits"
).network  # any torch module that gives logits for images in [0, 1]


def in_art(purifier: defend.Purifier | None) -> PyTorchClassifier:
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
    return float((classifier.predict(images).argmax(1) == y).mean())


def attacked(classifier: PyTorchClassifier) -> np.ndarray:
    pgd = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.025, max_iter=10, verbose=False)
    images: np.ndarray = pgd.generate(x, y)
    return images


bare, guarded = in_art(None), in_art(defend.load("bitdepth:bits=2"))
unaware = attacked(bare)  # the attacker does not know the purifier
aware = attacked(guarded)  # ART differentiates through it
print(
    f"clean                        bare {accuracy(bare, x):4.0%}   purified {accuracy(guarded, x):4.0%}"
)
print(
    f"attacker without knowledge   bare {accuracy(bare, unaware):4.0%}   purified {accuracy(guarded, unaware):4.0%}"
)
print(f"attacker who knows all                    purified {accuracy(guarded, aware):4.0%}")

"""Models with random weights, in folders as timm, transformers and RobustBench have them.

`make setup` installs timm and transformers with the extra `test`, so that CI runs their tests.
RobustBench pins old versions of what it needs, and is skipped there.
"""

from importlib.util import find_spec

import pytest
import torch

from defend.classifiers.robustbench import import_zoo

NEEDED = {
    "timm": pytest.mark.skipif(
        find_spec("timm") is None,
        reason="needs the extra timm: pip install 'defend-purifiers[timm]'",
    ),
    "huggingface": pytest.mark.skipif(
        find_spec("transformers") is None,
        reason="needs the extra huggingface: pip install 'defend-purifiers[huggingface]'",
    ),
    "robustbench": pytest.mark.skipif(
        not (find_spec("robustbench") and find_spec("autoattack")),
        reason="needs pip install 'defend-purifiers[robustbench]', and autoattack",
    ),
}
SMALLEST_FILE = "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt"  # of RobustBench's networks
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def normalised(x):
    """Return the images (b, 3, h, w) normalised by MEAN and STD."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def save_timm(folder, size=32, classes=10, safe=True):
    """Save a network of timm, and return it."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    config = {"mean": MEAN, "std": STD, "input_size": (3, size, size)}
    net = timm.create_model("test_resnet", num_classes=classes, pretrained_cfg_overlay=config)
    save_for_hf(net, folder, safe_serialization=safe)
    return net.eval()


def save_huggingface(folder, size=32, classes=10):
    """Save a network of transformers with its image processor, and return both."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=size,
        patch_size=8,
        num_labels=classes,
    )
    net = ViTForImageClassification(config)
    net.save_pretrained(folder)
    sides = {"height": size, "width": size}
    processor = ViTImageProcessor(size=sides, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(folder)
    return net.eval(), processor


def save_robustbench(folder):
    """Save the smallest network of RobustBench as its checkpoint lies in model_dir: folder."""
    import_zoo()  # its warnings are errors in a test
    from robustbench.model_zoo.cifar10 import Hendrycks2020AugMixWRNNet

    torch.manual_seed(0)
    net, file = Hendrycks2020AugMixWRNNet(), folder / SMALLEST_FILE
    file.parent.mkdir(parents=True)
    state = without_normalisation(net.state_dict())
    torch.save({"state_dict": prefixed("module.", state)}, file)
    return net.eval()


def without_normalisation(state):
    """Return the tensors without those of the normalisation, which checkpoints lack."""
    return {k: v for k, v in state.items() if k.rpartition(".")[2] not in ("mu", "sigma", "mean")}


def prefixed(prefix, state):
    """Return the tensors with a text before all names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


SAVE = {"timm": save_timm, "huggingface": save_huggingface, "robustbench": save_robustbench}
FIELD = {"timm": "model", "huggingface": "path"}  # that names the folder


def spec_of(library, folder, **fields):
    """Return the spec of the model in a folder."""
    settings = {FIELD[library]: f'"{folder}"', **fields}
    return f"{library}:{','.join(f'{key}={value}' for key, value in settings.items())}"


class SavedModels:
    """Folders with a model of each library, written when they are needed."""

    def __init__(self, folder):
        self.folder = folder

    def needed_by(self, spec):
        """Return the folders that a spec with {LIBRARY} in it needs, by the names in it."""
        folders = {}
        for library, save in SAVE.items():
            folder = folders[library] = self.folder / library
            if f"{{{library}}}" in spec and not folder.exists():
                folder.mkdir()
                save(folder)
        return folders

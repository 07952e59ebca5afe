"""Whatever weights a component holds are in its hashes and its key, and none hides another."""

import hashlib
from pathlib import Path

import pytest
import torch
from shared_prior import CARD
from torch import nn

from defend.benchmarks.component_keys import component_key, content_hash
from defend.benchmarks.components import check_trained
from defend.chain import Chain
from defend.errors import BadParameter, BadWeights
from defend.learned import Frozen
from defend.purifier import LearnedPurifier, Purifier
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights
from defend.weights.third_party import load_pretrained, loaded_weights


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Unit(nn.Conv2d):
    """A network of another library, which reads a file of any name."""

    def __init__(self):
        super().__init__(1, 1, 1)

    @classmethod
    def from_pretrained(cls, folder, local_files_only=False):
        assert local_files_only
        network = cls()
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and path.name != "config.json":
                network.load_state_dict(torch.load(path, weights_only=True))
        return network


@pytest.fixture
def write_folder(tmp_path):
    """Return write_folder(name, value): a folder with a file of weights, and a configuration."""

    def write(name, value=1.0, file="model.pth"):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True)
        state = {"weight": torch.full((1, 1, 1, 1), value), "bias": torch.zeros(1)}
        torch.save(state, path)
        (tmp_path / name / "config.json").write_text("{}")
        return tmp_path / name

    return write


# A second network beside the one that `build` returned.


class TwoNetworks(LearnedPurifier):
    """It holds another network beside its own."""

    card = CARD
    held: str = "Frozen"

    def build(self):
        return nn.Conv2d(1, 1, 1)

    def purify(self, x, noise):
        return x


HELD = {
    "Frozen": Frozen,
    "Frozen in a list": lambda net: [Frozen(net)],
    "plain": lambda net: net,
}


def two_networks(folder, held="Frozen", weights="untrained"):
    purifier = TwoNetworks(weights=weights)
    purifier.second = HELD[held](load_pretrained(Unit, folder))
    return purifier


@pytest.mark.parametrize("held", HELD)
def test_a_second_network_is_hashed(held, write_folder):
    one, other = write_folder("one", 1.0), write_folder("other", 2.0)
    purifier = two_networks(one, held)
    assert purifier.weights_sha256["one/model.pth"] == sha256(one / "model.pth")
    keys = [component_key(two_networks(path, held), "defense") for path in (one, one, other)]
    assert keys[0] == keys[1] != keys[2]
    contents = [content_hash(two_networks(path, held)) for path in (one, other)]
    assert "" != contents[0] != contents[1]


def test_the_network_of_build_is_known_by_its_file_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    header = Header(
        kind="defense",
        component="TwoNetworks",
        architecture="TwoNetworks",
        dataset="digits",
        fields={},
        trained_on=TrainedOn(kind="clean"),
        command="",
        seed=0,
        commit="",
    )
    save_weights(path, TwoNetworks(weights="untrained").net.state_dict(), header)
    purifier = TwoNetworks(weights=str(path))
    assert purifier.weights_sha256 == {str(path): sha256(path)}
    assert content_hash(purifier) == ""
    assert [known.kind for known in purifier.trained_on] == ["clean"]


def test_a_second_network_does_not_make_an_untrained_purifier_trained(write_folder):
    purifier = two_networks(write_folder("one"))
    with pytest.raises(BadParameter, match="weights=untrained measures nothing"):
        check_trained(purifier, "two")
    assert [known.kind for known in purifier.trained_on] == ["untrained", "unknown"]


# Folders.


WEIGHTS_FILES = ["model.pth", "model.pt", "model.ckpt", "pytorch_model.bin", "parts/model.pth"]


@pytest.mark.parametrize("file", WEIGHTS_FILES)
def test_weights_of_any_name_are_hashed(file, write_folder):
    folder = write_folder("unit", file=file)
    hashes = loaded_weights(load_pretrained(Unit, folder))
    assert hashes[f"unit/{file}"] == sha256(folder / file)
    assert set(hashes) == {f"unit/{file}", "unit/config.json"}


def test_a_folder_without_weights_is_refused(write_folder):
    folder = write_folder("unit", file="weights.of-my-own")
    with pytest.raises(BadWeights, match=r"unit: expected a file of weights .*got none") as e:
        load_pretrained(Unit, folder)
    assert "\n" not in str(e.value)


# Names that collide.


class TwoFolders(Purifier):
    """It loads two networks from folders."""

    card = CARD
    one: str
    other: str

    def validate(self):
        self.networks_held = [load_pretrained(Unit, path) for path in (self.one, self.other)]

    def purify(self, x, noise):
        return x


def chain_of_both(one, other):
    return Chain(members=(TwoFolders(one=one, other=one), TwoFolders(one=other, other=other)))


@pytest.mark.parametrize(
    "make",
    [lambda *paths: TwoFolders(one=paths[0], other=paths[1]), chain_of_both],
    ids=["one purifier", "a chain"],
)
def test_two_folders_of_one_name_keep_both_hashes(make, write_folder):
    one, other = write_folder("a/unit", 1.0), write_folder("b/unit", 2.0)
    assert make(str(one), str(other)).weights_sha256 == {
        "unit/model.pth": sha256(one / "model.pth"),
        "unit/model.pth (2)": sha256(other / "model.pth"),
        "unit/config.json": sha256(one / "config.json"),
    }


def test_one_folder_twice_is_listed_once(write_folder):
    one = write_folder("unit")
    assert len(chain_of_both(str(one), str(one)).weights_sha256) == 2

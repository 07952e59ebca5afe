"""docs/protocol.md lists the eps at which claims are made, all of them and no others."""

import re

import pytest
from source_files import REPOSITORY

from defend.eps import Eps
from defend.protocols.standard_eps import STANDARD_EPS

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text()
ROW = re.compile(r"^\| `([\w-]+)` \| (L-inf|L2) \| ([\d./]+) \|$", re.MULTILINE)
NORMS = {"L-inf": "Linf", "L2": "L2"}


def eps_of_page(text):
    """Return the table of a page: (data set, norm) -> eps as it is written."""
    return {(name, NORMS[norm]): eps for name, norm, eps in ROW.findall(text)}


def expected():
    return {key: Eps.of(eps).text for key, eps in STANDARD_EPS.items()}


def test_the_page_lists_the_standard_eps():
    assert eps_of_page(PAGE) == expected()


BROKEN = {
    "a row is missing": ("| `kodak` | L-inf | 16/255 |\n", ""),
    "another eps": ("| `faces` | L-inf | 4/255 |", "| `faces` | L-inf | 8/255 |"),
    "another norm": ("| `cifar10` | L2 | 0.5 |", "| `cifar10` | L-inf | 0.5 |"),
    "a row too many": ("| `mnist` |", "| `kmnist` | L-inf | 0.3 |\n| `mnist` |"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_table_that_differs_is_told(what):
    old, new = BROKEN[what]
    assert PAGE.count(old) == 1
    assert eps_of_page(PAGE.replace(old, new)) != expected()

"""The command line.

Each command has a file of its own name, which is imported when the command is used: `defend --help`
loads neither torch nor ART.
"""

import click

from defend import __version__
from defend.cli.lazy import LazyGroup

main = LazyGroup(
    {  # in the order in which a new user needs them
        "list": "List what is installed: defenses, attacks, classifiers, data sets, weights.",
        "show": "Show one component: its card, fields, source and weights.",
        "bench": "Run a suite: attacks x defenses x classifiers. Default: the embedded suite.",
        "audit": "Check whether the declared gradient of a defense can be trusted.",
        "report": "Write the results of run folders as a page, or as a table for a paper.",
        "diff": "Compare two runs cell by cell, paired over the same images.",
        "verify": "Confirm the records of a run by its units: what is missing or edited.",
        "train": "Train a learned defense or a classifier.",
        "tune": "Measure a defense at several scales on validation images.",
        "enrol": "Give a face classifier the people of another data set, without training.",
        "zoo": "Ship weights with a package: write and measure the rows of its zoo.toml.",
        "purify": "Purify image files.",
        "check": "Run the conformance kit on an installed component.",
    },
    name="defend",
    help=(
        "Adversarial purifiers as ART preprocessors, and benchmarks whose numbers hold against an"
        " attacker who knows the purifier."
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    params=[
        click.Option(
            ["--debug"], is_flag=True, envvar="DEFEND_DEBUG", help="Show the traceback of an error."
        )
    ],
)
click.version_option(__version__, prog_name="defend")(main)

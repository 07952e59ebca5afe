"""The command line. Each command stands in the file of its name and is imported when it is used: `defend --help` loads neither torch nor ART."""

import click

from defend import __version__
from defend.cli.lazy import LazyGroup

main = LazyGroup(
    {  # in the order in which one meets them
        "list": "What is installed: defenses, attacks, classifiers, data sets, weights.",
        "show": "One component: its card, fields, source and weights.",
        "bench": "Run a suite: attacks x defenses x classifiers. Without arguments, the embedded one.",
        "audit": "Is what a defense's declared gradient reports real? Checks, and a verdict.",
        "report": "Write report.html and results.csv from run folders.",
        "train": "Train a learned defense or a classifier.",
        "purify": "Purify image files.",
        "check": "Run the conformance kit on an installed component.",
    },
    name="defend",
    help="Adversarial purifiers as ART preprocessors, and benchmarks whose numbers survive an attacker who knows them.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    params=[
        click.Option(
            ["--debug"], is_flag=True, envvar="DEFEND_DEBUG", help="Show the traceback of an error."
        )
    ],
)
click.version_option(__version__, prog_name="defend")(main)

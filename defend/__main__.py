"""Run the command line: `python -m defend`."""

from defend.cli import main

main(prog_name="defend")

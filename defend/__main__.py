"""python -m defend: the command line."""

from defend.cli import main

main(prog_name="defend")

"""Records -> tables, with what a claim misses and what comparing cells shows."""

from defend.results.build import table as table
from defend.results.table import Number as Number
from defend.results.table import Row as Row
from defend.results.table import Section as Section
from defend.results.table import Table as Table
from defend.results.terminal import print_table as print_table

"""Tables, claims, diagnoses and reports, made from records and unit files alone."""

from defend.results.build import table as table
from defend.results.model import Number as Number
from defend.results.model import Row as Row
from defend.results.model import Section as Section
from defend.results.model import Table as Table
from defend.results.terminal import print_table as print_table

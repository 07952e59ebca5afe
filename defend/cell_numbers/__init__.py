"""The numbers of a cell from its units: of the bench, and again of `defend verify`."""

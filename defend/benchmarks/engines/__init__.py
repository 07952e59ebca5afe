"""Ways to spread the jobs of a run: processes of this machine."""

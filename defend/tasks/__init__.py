"""What an attacker wants and what is measured; one file for each task."""

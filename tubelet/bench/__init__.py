"""How fast tubelet is, side by side with others in one run: rows in turns, records, their report."""

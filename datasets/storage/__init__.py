"""Files that survive a kill, worker processes and random streams, for every other room."""

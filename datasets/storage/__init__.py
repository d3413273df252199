"""Files that survive a kill, worker processes, and random streams: what every other room uses."""

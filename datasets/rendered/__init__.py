"""Rendered dives: motion, picture, clip, data set. A stand-in; no number from it is a Diving48 number."""

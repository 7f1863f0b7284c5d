"""Measurements of time and memory beside the plain models and their peers: `kaconv bench`."""

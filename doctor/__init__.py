"""Checks of an installation and a machine, each with a remedy for what it finds wrong."""

"""A trained student as a folder that other programs load."""

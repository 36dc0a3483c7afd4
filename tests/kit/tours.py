"""What a guided tour printed, taken apart."""

import shlex


def typed_commands(output: str) -> list[str]:
    """Return each command that was printed for the user to type, on one line."""
    lines = output.replace(" \\\n    ", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def words_of(command: str) -> list[str]:
    """Return a command's words as a shell takes them."""
    return shlex.split(command)

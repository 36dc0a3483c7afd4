"""The commands: each file parses the options of one, calls one library function and prints."""

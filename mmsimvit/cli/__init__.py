"""A file for each command: ``python -m mmsimvit COMMAND``."""

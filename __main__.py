"""``python -m siglip2_cache``, which torchrun can start: the command line."""

from .cli import main

main()

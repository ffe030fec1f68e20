"""``python -m genomepred`` is the command ``genomepred``."""

from genomepred.cli import main

main()

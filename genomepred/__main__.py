"""``python -m genomepred`` is the command ``genomepred``."""

import sys

# Python puts the current folder first; files there must not pass for modules.
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from genomepred.cli import main

main()

"""Metadata that is made at build time: the package's long description and its links.

An index shows the README apart from the files it points to, so its links must be absolute.
`GENOMEPRED_URL=https://... python -m build` makes them so, of where the repository can be browsed
(its `blob/main/` is added, as on the usual hosts). Without it they become plain words and pictures
are left out: no link that leads nowhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from setuptools import setup

_PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)\n*")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def long_description(readme: str, url: str | None) -> str:
    """The README with links that hold anywhere."""
    if url is None:
        return _LINK.sub(r"\1", _PICTURE.sub("", readme))
    readme = _PICTURE.sub(rf"![\1]({url}/raw/main/\2)\n\n", readme)
    return _LINK.sub(rf"[\1]({url}/blob/main/\2)", readme)


def links(url: str | None) -> dict[str, str]:
    """Links beside the description."""
    if url is None:
        return {}
    pages = {"Documentation": "docs", "Changelog": "CHANGELOG.md"}
    return {"Source": url} | {name: f"{url}/blob/main/{page}" for name, page in pages.items()}


if __name__ == "__main__":
    address = os.environ.get("GENOMEPRED_URL", "").rstrip("/") or None
    setup(
        long_description=long_description(Path("README.md").read_text("utf-8"), address),
        long_description_content_type="text/markdown",
        project_urls=links(address),
    )

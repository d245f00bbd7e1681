"""Keeps the digests of what the pages quote of torch: `python -m docs_tools.digests`."""

from reimpl.read import drift, pages

if __name__ == "__main__":
    drift.write(pages.folder() / drift.FILE, pages.pages())

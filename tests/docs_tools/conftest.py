"""What builds the documentation is tested where it is installed; the library's own tests need none of it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("mkdocs") and find_spec("mkdocstrings") else ["test_*.py"]

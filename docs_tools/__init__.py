"""What the documentation is built with: the hooks of mkdocs, and what they call."""

"""What the server's page and the exported one share: how they look, and how they make elements."""

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = ("base.css", "elements.js")

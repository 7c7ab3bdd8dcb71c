"""The engine: one study (``search``, ``join``), and methods side by side (``compare``)."""

from lrsearch.engine.comparing import compare
from lrsearch.engine.methods import METHODS
from lrsearch.engine.result import SearchResult
from lrsearch.engine.running import search
from lrsearch.engine.workers.joining import join

__all__ = ["METHODS", "SearchResult", "compare", "join", "search"]

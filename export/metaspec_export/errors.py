"""Why a model is not exported."""

from __future__ import annotations


class ExportRefused(Exception):
    """A model is not published, or nothing can be exported here. The message says why, and what to do."""

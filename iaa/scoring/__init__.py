"""Photographs to scores: `Scorer` from Python, sources, shards and tables of the command predict.py."""

from iaa.scoring.scorer import Scorer

__all__ = ["Scorer"]

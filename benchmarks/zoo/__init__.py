"""Trained parameters with a card that says what they are and how they were made."""

from benchmarks.zoo.checkpoint import Card, digest, load, save
from benchmarks.zoo.entries import ENTRIES, Entry, setting_of

__all__ = ["ENTRIES", "Card", "Entry", "digest", "load", "save", "setting_of"]

"""Inspection of a memory on a document: where attention goes, how FAM changes, and the effect of replacing FAM."""

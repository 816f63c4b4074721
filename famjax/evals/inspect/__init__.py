"""Why a memory works or fails on a document: where attention goes, what FAM does, what happens without it."""

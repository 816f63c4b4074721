"""The command line: one file a verb. Only here, and in `gin/`, is gin known."""

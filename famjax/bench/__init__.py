"""How fast and how large: FAM beside models without memory, and beside other people's."""

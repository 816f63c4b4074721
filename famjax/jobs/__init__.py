"""Jobs of several processes: rendezvous, failure detection, end."""

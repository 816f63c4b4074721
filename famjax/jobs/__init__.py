"""Jobs of several processes: how they come together, watch each other and end."""

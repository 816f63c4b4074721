"""Using a trained model: loading it, reading texts of any length, scoring, writing on, sessions."""

"""`famjax serve`: an OpenAI-compatible server whose conversations are memories of a fixed size."""

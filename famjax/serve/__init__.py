"""`famjax serve`: an OpenAI-compatible server that stores conversations as memories of a fixed size."""

"""Built-in worlds, recorder and exploration policies."""

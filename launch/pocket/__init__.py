"""The embedded default: a small made-up world, its documents, its labelled sets and a backbone trained on it."""

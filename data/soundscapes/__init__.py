"""A synthetic corpus: sound events, scenes and balanced questions about them."""

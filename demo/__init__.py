"""Small encoders and a small language model for soundscapes: the scripts that train them."""

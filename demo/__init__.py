"""Small encoders and a small language model for soundscapes, and the scripts that train them; README.md is their card."""

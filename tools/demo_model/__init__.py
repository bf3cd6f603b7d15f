"""The demo model: speech to learn from, training, and how good the result is. README.md is its model card."""

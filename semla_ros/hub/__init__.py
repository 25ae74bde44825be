"""The Hugging Face hub: what is published there, its names, downloads."""

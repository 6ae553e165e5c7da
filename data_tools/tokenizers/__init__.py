"""Tokenizers of four kinds behind one interface, their training, and fast encoding."""

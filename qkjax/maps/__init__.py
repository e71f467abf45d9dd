"""Tokens on singular modes: query and key maps, what modes contribute to logits, the images they like best."""

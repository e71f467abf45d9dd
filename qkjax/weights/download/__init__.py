"""Downloads checkpoints from Google's storage, the Hugging Face hub, other servers and package indexes."""

"""Downloads: from Google's storage, the Hugging Face hub, other servers and package indices to the local folder."""

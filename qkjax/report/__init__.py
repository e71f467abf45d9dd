"""Results as a static site that opens from disk: modes, images, attention, to be looked at in a browser."""

"""Results as a static site that opens from disk in a browser: modes, images, attention."""

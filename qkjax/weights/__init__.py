"""From a name, a file or a folder to a checked parameter tree, and back to a file."""

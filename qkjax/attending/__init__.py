"""What attention does: whom tokens attend to, and which objects modes join."""

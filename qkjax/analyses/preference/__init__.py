"""Which tokens attend to which."""

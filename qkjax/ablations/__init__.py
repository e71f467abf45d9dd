"""What edits of modes do: plans, passes over images, tables."""

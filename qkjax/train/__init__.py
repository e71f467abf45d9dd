"""Training of ViTs whose query-key interaction is constrained: an extension of ours, the paper trains nothing."""

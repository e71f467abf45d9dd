"""Which images excite each mode most."""

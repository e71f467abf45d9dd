"""A resumable pass over a set of images, on all devices and hosts."""

"""One module or folder for each question; each is a function from a checkpoint to a Dataset."""

"""ms-swift. Its plug-in is loaded by path, so it lies in a folder where nothing else does."""

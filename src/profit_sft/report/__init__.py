"""Pages from recorded numbers: one HTML file each, which asks the network for nothing."""

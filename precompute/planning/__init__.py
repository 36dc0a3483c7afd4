"""From the samples of sources to a frozen catalog."""

"""Files of a cache, on this machine and in object stores, behind one protocol."""

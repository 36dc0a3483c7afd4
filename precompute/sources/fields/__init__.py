"""Which columns, members and files of a corpus are keys, captions, labels and images."""

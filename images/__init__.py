"""From the images of a catalog to pixels: reading their bytes, and decoding in worker processes.

A build decodes for its teacher, a training for its student. A PixelFormat describes the pixels.
"""

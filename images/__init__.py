"""Images to pixels: where those of a cache lie, and worker processes that decode them.

A build decodes for its teacher, a training for its student; what is wanted of a picture is a PixelFormat.
"""

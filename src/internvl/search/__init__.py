"""Many pictures to vectors on disk, an index over them, and the pictures that answer a text or a picture."""

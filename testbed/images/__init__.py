"""Images of containers, unpacked into a cache: a folder of files and a few settings each."""

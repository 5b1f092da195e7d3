"""The small guest: a Linux of 15 MB that boots in seconds under software emulation, made from Debian packages where it is needed.

It is a kernel and an initial RAM disk on a FAT disk; nothing of it is kept between boots. init.sh is its first process.
"""

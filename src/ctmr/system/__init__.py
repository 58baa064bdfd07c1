"""Idioms of the operating system, once: files, processes, pools, daemons, the home folder, digests, progress."""

"""Hosts that shmrec knows how to join: one file each."""

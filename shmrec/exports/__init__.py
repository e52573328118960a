"""The formats of `shmrec-dump export`, one module each: see `exporting`."""

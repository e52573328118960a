"""The verbs of ``shmrec-dump``: each module is one, its `command` does it."""

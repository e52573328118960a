"""The report as one HTML file: its text (`story`), its timeline (`drawing`), and the page.

Runs in ``shmrec-dump report``. The page needs no network and asks for none; without scripts, as
in a mail's preview, all of its text is there. Whatever was recorded is hostile: the template
escapes it, scripts get it as data and show it as text, and the page's own policy lets no other
script run.
"""

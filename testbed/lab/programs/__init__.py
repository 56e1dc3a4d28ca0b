"""Small programs that experiments run in hosts, as ``python3 -c``: standard library, one file each."""

"""`python -m modalign` is the command line."""

from modalign.cli import main

main()

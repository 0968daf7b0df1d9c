"""`report.html`: what a run found, as one self-contained page."""

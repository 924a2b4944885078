"""`python -m pipelines`: the command line without its script."""

from pipelines.cli import main

main()

"""`python -m gusset` is the `gusset` command."""

from gusset.cli.main import main

main()

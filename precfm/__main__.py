"""`python -m precfm`: the command line where `precfm` is not on the path."""

from precfm.cli.command_line import main

if __name__ == "__main__":
    main()

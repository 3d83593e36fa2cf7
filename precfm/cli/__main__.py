"""`python -m precfm.cli`: the same as `python -m precfm`."""

from precfm.cli.command_line import main

if __name__ == "__main__":
    main()

"""`python -m alignez_bake`: the command line."""

from alignez_bake.cli.main import main

if __name__ == "__main__":
    main()

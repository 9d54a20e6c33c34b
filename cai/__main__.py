"""`python -m cai`: the command line, where the `cai` script isn't on the path."""

from cai.cli import main

if __name__ == "__main__":
    main()

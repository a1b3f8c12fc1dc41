"""Lets `python -m tl_vzero` stand for the command tl-vzero."""

from tl_vzero.cli import main

if __name__ == "__main__":
    main()

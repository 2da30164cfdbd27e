"""`python -m ocis2i`."""

from ocis2i.cli import main

if __name__ == "__main__":
    main()

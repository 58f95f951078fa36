"""`python -m hansa` is `hansa`."""

from hansa.cli import main

if __name__ == "__main__":
    main()

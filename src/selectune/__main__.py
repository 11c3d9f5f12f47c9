"""`python -m selectune` is the same program as `selectune`."""

from selectune.cli import main

if __name__ == "__main__":
    main()

"""`python -m batchscribe` is the `batchscribe` command."""

from batchscribe.cli.main import main

if __name__ == "__main__":
    main()

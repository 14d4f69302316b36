"""`python -m deploy.cli`: the command, where it is not on the path."""

from deploy.cli import main

if __name__ == "__main__":
    main()

"""`python -m farworld` is the `farworld` command."""

from farworld.cli import main

if __name__ == "__main__":
    main()

"""`python -m habitus`, where the script is not on the path."""

from habitus.cli import main

if __name__ == "__main__":
    main()

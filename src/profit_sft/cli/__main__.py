"""`python -m profit_sft.cli`, for where the command is not on the path."""

from profit_sft.cli import main

if __name__ == "__main__":
    main()

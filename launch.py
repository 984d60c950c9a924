"""`python launch.py VERB …`: the program `kdjax`, from a checkout."""

from kdjax.cli import program

if __name__ == "__main__":
    program()

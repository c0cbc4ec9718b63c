"""Runs the command `dera-jax` as `python -m dera_jax`."""

from dera_jax.command import main

if __name__ == "__main__":
    main()

"""`python -m hf_optim` is the command `hf-optim`."""

from hf_optim.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())

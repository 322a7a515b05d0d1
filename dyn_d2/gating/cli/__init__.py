"""Commands for all gated networks, one in each module; ../commands.py lists them."""

"""The commands of this method, one in each module; ../commands.py lists them."""

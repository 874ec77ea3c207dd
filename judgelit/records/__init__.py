"""What a pair, a judgment and an example are, and every public file form that is read into them."""

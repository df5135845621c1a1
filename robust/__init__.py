"""What can go wrong with an input: threat models, and the attacks built from them."""

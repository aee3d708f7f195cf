"""Embedded toy worlds: each writes its data and brings a tokenizer and a gold judge, so that everything runs offline."""

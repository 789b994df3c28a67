"""Tokenizers of the three modalities; import the one you need (`tokenizers.image`, `.speech`, `.text`)."""

"""Models that judge answers, none of them the one that is judged. PyTorch is imported when one that needs it is made."""

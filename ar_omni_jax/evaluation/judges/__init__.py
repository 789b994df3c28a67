"""Models that judge answers, none of them the judged one. PyTorch is imported when one that needs it is made."""

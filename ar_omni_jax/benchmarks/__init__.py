"""Measurements that anyone can repeat: each is a command that names the machine and runs its rival in the same run."""

"""The mirror stage: exactly the locked files, from whatever place has them, as one local repository."""

"""How fast does a hot model reach a program of the Hugging Face world: through the endpoint, and through the mount?"""

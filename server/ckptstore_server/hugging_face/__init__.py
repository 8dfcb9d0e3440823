"""The models of the namespace, served as the Hugging Face Hub serves its own: `HF_ENDPOINT=http://node:8900/hf` is all that changes."""

"""`ckpt://` for everything that opens files through fsspec. fsspec finds it by its entry point; nothing here is imported before that."""

"""`ckptstore bench mount`: files through the mount beside the same files on the disk and in others' mounts."""

"""What people start: the `ppt` command, the scripts of the DeepSpeed launcher, presets and the embedded default."""

"""Task corpora to prompt groups: the frozen backbone, the prompt bank and the DeepSpeed job."""

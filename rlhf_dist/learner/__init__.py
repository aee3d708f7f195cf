"""DeepSpeed ZeRO ranks that turn scored samples into new weights."""

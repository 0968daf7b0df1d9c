"""What a data spec names: rows of pictures and captions (`sources`), their order (`order`), their pixels (`images`)."""

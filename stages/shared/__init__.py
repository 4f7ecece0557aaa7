"""What several stage programs share. A plan's program lists the files it uses, so that each key names them."""

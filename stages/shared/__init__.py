"""What several stage programs share. A program lists the files it uses, so that each key names them."""

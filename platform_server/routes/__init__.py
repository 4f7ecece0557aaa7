"""The platform's paths, one file a kind of thing; they translate between HTTP and the functions beside."""

"""`dopsd caption`: captions of pictures by a vision-language model, as a list that is a source."""

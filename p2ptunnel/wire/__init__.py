"""Pure codecs: bytes to frozen values and back."""

"""Who asks and what they may do: access tokens, the keys that they are verified by, and an issuer for who has none."""

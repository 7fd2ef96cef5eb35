"""Import paths that users of the Ascend toolkit know."""

"""`sightline doctor --families`: every family beside the library that it is compared with."""
